"""``python -m mansu.subjects``: prepare the default model."""

from mansu.subjects import prepare_default

print(f"default model ready in {prepare_default()}")
