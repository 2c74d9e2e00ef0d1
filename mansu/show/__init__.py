"""How numbers and tables are written, for terminal, notebook and Markdown alike; knows no value."""
