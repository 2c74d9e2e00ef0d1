"""A job: a run folder and the steps that fill it."""
