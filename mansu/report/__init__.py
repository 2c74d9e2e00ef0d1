"""Comparisons of what was measured, made once for terminal, pages, cards and README."""
