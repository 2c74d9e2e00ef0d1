"""The models under study: loaded once, read-only, edited and put back bit for bit."""

from mansu.subjects.blocks import Block, Norm
from mansu.subjects.edit import Edit, touched
from mansu.subjects.loading import expected_bytes, load, wrap
from mansu.subjects.shipped import (
    DEFAULT,
    GEMMA,
    OFFERED,
    REFERENCES,
    RETRAINED,
    TINY,
    TINY_FOLDER,
    cache_folder,
    prepare,
)
from mansu.subjects.subject import Subject
from mansu.subjects.weights import FAMILIES, kind_of, layer_of, layout, transposed_names

__all__ = [
    "DEFAULT",
    "FAMILIES",
    "GEMMA",
    "OFFERED",
    "REFERENCES",
    "RETRAINED",
    "TINY",
    "TINY_FOLDER",
    "Block",
    "Edit",
    "Norm",
    "Subject",
    "cache_folder",
    "expected_bytes",
    "kind_of",
    "layer_of",
    "layout",
    "load",
    "prepare",
    "touched",
    "transposed_names",
    "wrap",
]
