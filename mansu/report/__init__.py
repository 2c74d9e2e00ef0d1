"""Tables and sentences, made once for terminal, pages, cards and README."""
