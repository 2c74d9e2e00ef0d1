"""``python -m mansu``."""

from mansu.cli import script

script()
