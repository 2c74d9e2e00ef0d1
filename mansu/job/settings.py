"""A run's settings, described once: command line, app, front door and model card render them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mansu.settings import setting

if TYPE_CHECKING:
    from mansu.subjects.subject import Subject


@dataclass(frozen=True)
class Settings:
    """How attribution and circuit are made, and the seed of everything.

    Built with ``mansu.settings.configure(Settings, values, "a run")``, which checks them.
    """

    pairs: int = setting(32, "Clean–corrupt pairs that attribution averages over.", low=1)
    steps: int = setting(
        5,
        "EAP-IG averages the gradient over K points between clean and corrupt: "
        "score(u→v) = Σ (z_u corrupt − z_u clean) · (1/K) Σ_k ∂L/∂x_v.",
        low=1,
        source="Hanna et al. 2024, arXiv:2403.17806",
    )
    tau: float = setting(
        0.85,
        "The circuit is the smallest found that keeps this share of the behaviour: "
        "(m(circuit) − m(corrupt)) ÷ (m(clean) − m(corrupt)), m the logit difference.",
        low=0,
        high=1,
        above=True,
    )
    max_fraction: float | None = setting(
        None,
        "The mask's largest share of the parameters; without, 0.005, and 0.1 in a toy.",
        low=0,
        high=1,
        above=True,
    )
    seed: int = setting(0, "The seed of everything random.", low=0)
    memory: int = setting(
        4096, "MiB that attribution and circuit may hold beside the weights.", low=1
    )

    @property
    def budget(self) -> int:
        """``memory`` in bytes."""
        return self.memory << 20

    def fraction(self, subject: Subject) -> float:
        """The mask's largest share of this subject's parameters."""
        return self.max_fraction or default_fraction(subject)


def default_fraction(subject: Subject) -> float:
    """Half a percent of the parameters; a tenth in a toy, where one head is already a percent."""
    return 0.1 if subject.is_toy else 0.005
