"""bitsandbytes, without its advice."""

from __future__ import annotations

import logging

# bitsandbytes advises at import to install a package of GPU kernels that we have no use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
import bitsandbytes.functional as bnb  # noqa: E402
from bitsandbytes.nn.modules import Linear4bit, Params4bit  # noqa: E402

__all__ = ["Linear4bit", "Params4bit", "bnb"]
