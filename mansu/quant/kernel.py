"""bitsandbytes, without its advice, imported when its kernel is first asked for.

Reading results, which is what pages and most commands do, needs none of it, and importing it takes
as long as torch does.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType


@cache
def bnb() -> ModuleType:
    """``bitsandbytes.functional``."""
    # It advises at import to install a package of GPU kernels that we have no use for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes.functional

    return bitsandbytes.functional


@cache
def layers() -> ModuleType:
    """``bitsandbytes.nn.modules``."""
    bnb()
    import bitsandbytes.nn.modules

    return bitsandbytes.nn.modules
