"""Every record has its line."""

from __future__ import annotations

import pytest

from mansu.progress import Step
from mansu.show.sentences import enumerated, sentence


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Step("attribution", 3, 40), "attribution: step 3 of 40"),
        (
            Step("unlearn", 0, 36, "mansu", "quantising the unedited model"),
            "mansu: quantising the unedited model",
        ),
        (
            Step("unlearn", 3, 36, "mansu", values={"in_nf4": 1.0, "moved": 1812}),
            "mansu: step 3 of 36: 1,812 weights moved",
        ),
        (
            Step("unlearn", 1, 4, "ga", values={"forget": -1.25, "gradient_norm": 0.5}),
            "ga: step 1 of 4: forget −1.250, gradient norm 0.5",
        ),
        (Step("attacks", 12, 12, "ga", "int8"), "ga: attacks: int8 (12 of 12)"),
    ],
)
def test_a_record_as_text(step: Step, text: str) -> None:
    assert sentence(step) == text


def test_words_are_enumerated_as_in_a_sentence() -> None:
    found = [enumerated("abc"[:n]) for n in range(4)]
    assert found == ["", "a", "a and b", "a, b and c"]
