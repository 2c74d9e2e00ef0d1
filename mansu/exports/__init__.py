"""An edited model as files that other tools read."""

from mansu.exports.bundle import pack, unpack
from mansu.exports.card import model_card
from mansu.exports.checkpoint import checkpoint, nf4_checkpoint
from mansu.exports.formats import FORMATS, HARNESS, write
from mansu.exports.gguf_file import OUTTYPES, gguf_file
from mansu.exports.harness import harness_command, harness_name, lm_eval

__all__ = [
    "FORMATS",
    "HARNESS",
    "OUTTYPES",
    "checkpoint",
    "gguf_file",
    "harness_command",
    "harness_name",
    "lm_eval",
    "model_card",
    "nf4_checkpoint",
    "pack",
    "unpack",
    "write",
]
