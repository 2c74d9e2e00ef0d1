"""The models under study: loaded once, read-only, edited and put back bit for bit."""

from mansu.subjects.blocks import Block, Norm
from mansu.subjects.edit import Edit, touched
from mansu.subjects.loading import load, wrap
from mansu.subjects.shipped import DEFAULT, TINY, TINY_FOLDER, cache_folder, prepare_default
from mansu.subjects.subject import WRAPPER, Subject
from mansu.subjects.weights import layer_of, layout, matrix_kind, transposed_names

__all__ = [
    "DEFAULT",
    "TINY",
    "TINY_FOLDER",
    "WRAPPER",
    "Block",
    "Edit",
    "Norm",
    "Subject",
    "cache_folder",
    "layer_of",
    "layout",
    "load",
    "matrix_kind",
    "prepare_default",
    "touched",
    "transposed_names",
    "wrap",
]
