"""``mansu doctor``."""

from __future__ import annotations

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """It has no arguments."""


def doctor(options: argparse.Namespace) -> int:
    """Print every finding as it is made; the exit code is 1 where something is wrong."""
    from mansu.job.doctor import examine

    wrong = 0
    for finding in examine():
        print(finding, flush=True)
        wrong += not finding.right
    print(f"{wrong} to mend" if wrong else "nothing is wrong")
    return 1 if wrong else 0
