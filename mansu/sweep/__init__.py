"""A grid of edits: done by many processes or nodes, kept in one store."""
