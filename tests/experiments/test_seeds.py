"""The table of seeds says what the runs hold; its units are those of the reproduction."""

from experiments import reproduce, seeds
from mansu.job.runs import EXAMPLES, Run
from mansu.subjects import TINY


def test_the_first_seed_is_what_the_reproduction_does() -> None:
    (experiment, *_) = reproduce.chosen(reproduce.configured(), TINY, None)
    ours = {u.id for u in seeds.planned(TINY, "tiny-colours") if u.run["seed"] == 0}
    assert ours == {u.id for u in experiment.units(seeds.METHODS)}


def test_a_row_has_the_mean_the_least_and_the_most() -> None:
    run = Run.open(EXAMPLES / "tiny-colours")
    found = seeds.table(
        {"mansu": [(run, "mansu"), (run, "graddiff")], "graddiff": [(run, "mansu")]}
    )
    both, alone = found.rows
    full = [100 * run.measurement(e, nf4=False).splits["forget"].accuracy for e in run.edits()]
    low, high = sorted(full)
    assert both[1] == "2"
    assert both[2].startswith(f"{sum(full) / 2:.0f} [{low:.0f}, {high:.0f}] / ")
    assert "[" not in alone[2]
    status = run.verdict("mansu").gap.status
    assert found.columns["PTQ gap ≤ 0"][1] == f"1 {seeds.mark(status)}"
