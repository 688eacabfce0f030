"""The model card of a release: its shape, training data and settings, ranking quality and limits, as Markdown.

folder.py writes it beside release.json, from the same record.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from spoor.base.numbers import number_text
from spoor.encoder.release.training_end import TrainingEnd


def model_card(record: Mapping[str, Any], *, metrics: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """Markdown text. `record`: the contents of release.json."""
    through = datetime.fromtimestamp(record["trained_through_ms"] / 1000, UTC).isoformat(timespec="milliseconds")
    return "\n".join(
        [
            f"# Release {record['name']}",
            "",
            f"Turns a user's newest {record['max_events']} events into a vector of {record['dimension']} floats"
            f"{' (L2 norm 1)' if record['model']['score'] == 'cosine' else ''}. The product of a user vector and an "
            "item vector ranks what the user does next.",
            "",
            f"- Trained through {through} (the newest event that had any part in it).",
            f"- Made at {record['created_at']}; item hash version {record['hash_version']}, "
            f"row hash version {record['row_hash_version']}.",
            f"- Training data fingerprint: `{record['data_fingerprint']}`.",
            *_split(record["split"]),
            *_packed(record.get("packed")),
            *_aligned(record.get("aligned")),
            *_ended(record.get("ended")),
            "",
            "## Quality",
            "",
            *_table(metrics, "metric"),
            "",
            "Each validation event is predicted from the events before it, among all known items, before the weights "
            "were trained on it in the refit. Popularity ranks by the number of training events.",
            "",
            "## Training",
            "",
            *_table(training, "setting"),
            "",
            "## Model",
            "",
            *_table(record["model"], "field"),
            "",
            "## Limits",
            "",
            "- Items that were not among the training events share one vector, that of the unknown item.",
            "- Vectors of two releases are not comparable, unless one was aligned to the other.",
            "- A user without events has no vector: the encoder returns zeros, and 0 events used.",
            "",
        ]
    )


def _split(split: Mapping[str, Any] | None) -> list[str]:
    if split is None:
        return []
    ties = "" if split["shuffle_ties"] is None else f", ties shuffled by the seed {split['shuffle_ties']}"
    return [f"- Protocol {split['protocol']}{ties}; digest of the split `{split['digest']}`."]


def _packed(packed: Mapping[str, Any] | None) -> list[str]:
    if packed is None:
        return []
    return [
        f"- Item tables packed as {packed['layout']} from release `{packed['of']}`, "
        "whose quality before packing stands below."
    ]


def _aligned(aligned: Mapping[str, Any] | None) -> list[str]:
    if aligned is None:
        return []
    fit = aligned["report"]["user_fit"]
    return [
        f"- The vectors of release `{aligned['of']}`, turned into the space of `{aligned['space']}`: the cosine with "
        f"the vector of `{aligned['to']}` is {fit['cosine_after']:.3f} on average of {fit['vectors']} held-out users."
    ]


def _ended(ended: Mapping[str, Any] | None) -> list[str]:
    line = TrainingEnd.from_json(ended).line if ended else ""
    return [f"- {line[0].upper()}{line[1:]}."] if line else []


def _table(values: Mapping[str, Any], heading: str) -> list[str]:
    rows = [f"| {name} | {_text(value)} |" for name, value in sorted(values.items())]
    return [f"| {heading} | value |", "|---|---|", *rows]


def _text(value: Any) -> str:
    return number_text(value) if isinstance(value, int | float) else str(value)
