"""Whatever transformers loads or writes: one at a time in this process, without its bars."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

_LOCK = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Around ``from_pretrained`` and ``save_pretrained``.

    transformers patches its own classes while it loads, so that two loads at once spoil each other.
    Its progress bars, which say nothing that our own steps do not, are as they were afterwards.
    """
    with _LOCK:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()
