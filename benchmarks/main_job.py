"""The main job's figures as Markdown tables, read from a run folder.

::

    mansu run --method mansu --method graddiff --method npo --folder runs/chemical-symbols
    python benchmarks/main_job.py runs/chemical-symbols
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mansu.evaluate import Measurement
from mansu.runs import Run


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracies(full: Measurement, nf4: Measurement) -> list[str]:
    """``full / NF4`` of every group of every split."""
    cells = []
    for split, scores in full.splits.items():
        for group in dict.fromkeys(scores.groups):
            values = (m.splits[split].group(group).accuracy for m in (full, nf4))
            cells.append(" / ".join(f"{100 * v:.1f}" for v in values))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    run = Run.open(parser.parse_args().run)

    base = run.base(nf4=False)
    names = [
        f"{split}: {group}"
        for split, scores in base.splits.items()
        for group in dict.fromkeys(scores.groups)
    ]
    rows = [["no edit", *accuracies(base, run.base(nf4=True))]]
    for method in run.judged():
        measured = (run.measurement(method, nf4=nf4) for nf4 in (False, True))
        rows.append([method, *accuracies(*measured)])
    print("4-way accuracy in %, full precision / NF4\n")
    print(table(["", *names], rows))

    print("\nThe four properties\n")
    rows = []
    for method in run.judged():
        verdict, gap = run.verdict(method), None
        for p in verdict.properties:
            gap = p.details.get("gap in nats", gap)
        assert gap is not None
        marks = [
            f"{p.status} ({p.margin:+.3f})" for p in verdict.properties if p.margin is not None
        ]
        nats = f"{gap[0]:+.2f} [{gap[1]:+.2f}, {gap[2]:+.2f}]"
        rows.append([method, verdict.status, *marks, nats])
    header = [p.name for p in run.verdict(run.judged()[0]).properties]
    print(table(["", "verdict", *header, "PTQ gap, nats"], rows))

    print("\nUpdates against bins, and CAD\n")
    rows = []
    for method in run.judged():
        history, report, cad = run.history(method), run.survival(method), run.divergences(method)
        ratio, share = report.quantized.width_over_update, report.quantized.share
        values = (cad.edited, cad.noise_floor, cad.suppressor, cad.signal, cad.signal_suppressor)
        rows.append(
            [
                method,
                f"{100 * history['fraction']:.3f}",
                "–" if ratio is None else f"{ratio:.3g}",
                "–" if share is None else f"{100 * share:.2f}",
                *("–" if v is None else f"{v.value:.3f}" for v in values),
            ]
        )
    header = ["moved, % of parameters", "median bin width ÷ update", "moved that change code, %"]
    header += ["CAD", "noise floor", "suppressor", "signal CAD", "suppressor's"]
    print(table(["", *header], rows))

    circuit, mask = run.circuit(), run.mask()
    assert circuit.faithfulness is not None and circuit.interval is not None
    low, high = circuit.interval
    print(
        f"\nCircuit: {len(circuit)} of {circuit.layout.n_edges:,} edges, faithfulness "
        f"{circuit.faithfulness:.3f} [{low:.3f}, {high:.3f}]; mask {mask.size:,} parameters "
        f"({mask.fraction:.3%})."
    )
    print("\nSeconds by step (peak memory in GiB)\n")
    print(table(["step", "seconds"], [[k, f"{v:.1f}"] for k, v in run.timings().items()]))


if __name__ == "__main__":
    main()
