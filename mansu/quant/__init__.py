"""Low-bit formats exactly as their own libraries make them, and what they keep of an edit."""

from mansu.quant.codes import (
    Quantized,
    bin_width,
    dequantize,
    quantize,
    rounds_as_said,
    sets_absmax,
)
from mansu.quant.floor import CASTABLE, centers, code_centers, holds_cast, leaves_bin
from mansu.quant.followed import Coded, Followed, Moves, follow, moves
from mansu.quant.formats import BOUNDARIES, CODES, FORMATS, GGUF, HQQ, NF4, Format
from mansu.quant.ggml import HEAD, packed, stored
from mansu.quant.linear4bit import linear4bit_model
from mansu.quant.survival import (
    EDGES,
    QUANTILES,
    Kept,
    NF4Report,
    Survival,
    floor_across,
    kept_by_format,
    report,
    survival_by_format,
)
from mansu.quant.swap import Dequantized, quantized

__all__ = [
    "BOUNDARIES",
    "CASTABLE",
    "CODES",
    "EDGES",
    "FORMATS",
    "GGUF",
    "HEAD",
    "HQQ",
    "NF4",
    "QUANTILES",
    "Coded",
    "Dequantized",
    "Followed",
    "Format",
    "Kept",
    "Moves",
    "NF4Report",
    "Quantized",
    "Survival",
    "bin_width",
    "centers",
    "code_centers",
    "dequantize",
    "floor_across",
    "follow",
    "holds_cast",
    "kept_by_format",
    "leaves_bin",
    "linear4bit_model",
    "moves",
    "packed",
    "quantize",
    "quantized",
    "report",
    "rounds_as_said",
    "sets_absmax",
    "stored",
    "survival_by_format",
]
