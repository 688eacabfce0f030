"""How a training ended: the record in release.json, and its text in the model card and `spoor release list`.

`rising` and `cut` mark a release that longer training would have improved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NOTABLE_GAIN = 1.01  # ratio of NDCG@10 between evaluations; above it, more training would have helped


@dataclass(frozen=True)
class TrainingEnd:
    """`by`: what ended the first stage: epochs, patience, steps or max_minutes. `cut`: the time limit ended a stage
    before its planned steps, so the learning rate had not decayed. `rising`: validation NDCG@10 was still rising when
    a limit ended the training. `planned_steps`: 0 = no limit; setting pretrain.steps to this number repeats the run,
    unless it was cut."""

    by: str
    cut: bool
    rising: bool
    steps: int
    planned_steps: int
    ndcg_before: float  # NDCG@10 of the evaluation before the last; 0 if there was only one
    ndcg_at_end: float

    @classmethod
    def of(
        cls, *, by: str, cut: bool, steps: int, planned_steps: int, evaluations: Sequence[Mapping[str, float]]
    ) -> TrainingEnd:
        before, last = ([0.0, 0.0, *(found["ndcg_at_10"] for found in evaluations)])[-2:]
        best = max((found["ndcg_at_10"] for found in evaluations), default=0.0)
        rising = by in ("steps", "max_minutes") and last >= best and last > before * _NOTABLE_GAIN
        return cls(by, cut, rising, steps, planned_steps, before, last)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TrainingEnd:
        """Raises KeyError, TypeError."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})

    @property
    def note(self) -> str:
        """A few words for a list; empty if there is nothing to report."""
        if self.rising:
            return f"stopped by {self.by} while still rising"
        return f"cut short by {self.by}" if self.cut else ""

    @property
    def line(self) -> str:
        """A sentence for users; empty if there is nothing to report."""
        if not self.note:
            return ""
        said = f"pretrain.{self.by} ended the training after {self.steps:,} steps"
        if self.rising:
            said += (
                f" while validation NDCG@10 was still rising ({self.ndcg_before:.4f} to {self.ndcg_at_end:.4f}): "
                "a longer training gives a better release"
            )
        if self.cut:
            said += (
                f"; the run was slower than measured, and was cut before its {self.planned_steps:,} planned steps"
                if self.planned_steps > self.steps
                else "; the time was over before the speed was known"
            )
        return said
