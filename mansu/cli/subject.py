"""``mansu subject``: the subjects that MANSU knows by name, and preparing one."""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mansu.subjects.shipped import Shipped


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="the subject to prepare; without, they are listed")
    parser.add_argument(
        "--accept-terms",
        action="store_true",
        help="you have read and accept the terms that the subject comes under",
    )


def subject(options: argparse.Namespace) -> None:
    """List the subjects with their state, or prepare one."""
    from mansu.subjects import shipped

    if options.name is None:
        print(listing())
        return
    wanted = shipped.named(options.name)
    accepted = options.accept_terms
    if wanted.terms and not wanted.ready and not accepted and sys.stdin.isatty():
        accepted = _asked(wanted)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing half-made stays
    if not wanted.ready and (accepted or not wanted.terms):
        print(f"preparing {wanted.name}: {wanted.takes}", file=sys.stderr, flush=True)
    folder = shipped.prepare(wanted.name, accepted=accepted)
    print(f"{wanted.name} is ready in {folder}")


def listing() -> str:
    """The shipped subjects, two lines each: the name and its state, then what it is."""
    from mansu.subjects import shipped

    wide = max(map(len, shipped.TABLE)) + 2
    return "\n".join(
        f"{s.name.ljust(wide)}{s.state}\n{' ' * wide}{s.title}; licence: {s.licence}"
        for s in shipped.TABLE.values()
    )


def _asked(wanted: Shipped) -> bool:
    """Show the terms and ask whether they are accepted."""
    from mansu.subjects import shipped

    assert wanted.terms is not None
    for paragraph in shipped.terms_text(wanted.name).splitlines():
        print(textwrap.fill(paragraph, 100))
    try:
        answer = input(f"Do you accept the {wanted.terms.title}? (yes or no) ")
    except EOFError:
        return False
    return answer.strip().lower() in ("yes", "y")
