"""The size and shape of a model, part of its identity: the same numbers always build the same network.

configs/ holds the named configurations: `tiny` for tests, `base` for two CPU cores, `paper` for PinFM's tables.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from spoor.base.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Raises ValueError when the numbers do not fit together."""

    segment_length: int  # maximum events of a training segment
    served_length: int  # newest events of a user that the model reads when serving
    items: Literal["hashed", "direct"]  # items share rows by hashing, or each known item has its own row
    hash_functions: int  # tables; an item's embedding concatenates its row of each table; direct: 1
    table_rows: int  # rows of each table, row 0 reserved for unknown items; direct: 0, the vocabulary decides
    table_width: int  # floats in one row
    width: int  # floats of an event inside the transformer
    layers: int  # transformer blocks
    heads: int  # attention heads of each block
    feed_forward_width: int  # floats inside a block's feed-forward part
    dimension: int  # floats of a user vector and of an item vector
    projections: Literal["mlp", "residual"] = "mlp"  # phi_in, phi_out, psi: MLPs, or identity + MLPs that start at 0
    projection_width: int = 64  # hidden floats of phi_in, phi_out and psi; residual: 0 = identity only
    score: Literal["cosine", "dot"] = "cosine"  # of a user and an item vector; dot: no norms, no temperature
    time_gaps: bool = False  # whether an event's embedding includes the time since the previous event
    rotated: bool = False  # whether vectors are rotated into another release's space (encoder/release/align.py)
    input_dropout: float = 0.2  # share of the activations dropped before the first block
    dropout: float = 0.2  # share of the activations dropped inside the blocks
    temperature: float = 0.05  # initial temperature of the loss; learned
    temperature_floor: float = 0.01  # lower bound of the learned temperature

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if (allowed := get_args(hint)) and getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {getattr(self, name)!r}")
        for field in fields(self):
            least = 0 if field.name in ("table_rows", "projection_width") else 1
            if field.type == "int" and getattr(self, field.name) < least:
                raise ValueError(f"{field.name} must be at least {least}; found {getattr(self, field.name)}")
        self._check_tables()
        self._check_widths()
        for name in ("input_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); found {getattr(self, name)}")
        if not 0 < self.temperature_floor < self.temperature:
            raise ValueError(
                "temperature must be above temperature_floor, and that above 0; "
                f"found {self.temperature} and {self.temperature_floor}"
            )

    def _check_tables(self) -> None:
        if self.items == "hashed" and self.table_rows < 2:
            raise ValueError(f"table_rows must be at least 2 (row 0 is reserved); found {self.table_rows}")
        if self.items == "direct" and (self.hash_functions, self.table_rows) != (1, 0):
            raise ValueError(
                "direct items have hash_functions 1 and table_rows 0, as many as there are items; "
                f"found {self.hash_functions} and {self.table_rows}"
            )

    def _check_widths(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                "width must be a multiple of 2 x heads, since rotary positions turn pairs; "
                f"found {self.width} and {self.heads}"
            )
        if self.projections == "residual" and not self.item_width == self.width == self.dimension:
            raise ValueError(
                "residual projections need hash_functions x table_width, width and dimension to be equal; "
                f"found {self.item_width}, {self.width} and {self.dimension}"
            )
        if self.projections == "mlp" and self.projection_width < 1:
            raise ValueError("projection_width must be at least 1 where the projections are MLPs; found 0")

    @property
    def item_width(self) -> int:
        """Floats of an item's embedding: its rows in all tables, concatenated."""
        return self.hash_functions * self.table_width

    @property
    def max_events(self) -> int:
        """Newest events of a user that the model reads: `served_length`, under the name that histories use."""
        return self.served_length

    def rows_for(self, known_items: int) -> int:
        """Rows of each table for a vocabulary of this size, including the reserved row."""
        return known_items + 1 if self.items == "direct" else self.table_rows

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ModelConfig:
        """Raises DataError when a field is missing, unknown or out of range."""
        try:
            return cls(**record)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"not a model configuration: {error}",
                hint="this release was written by another version of Spoor; use that version, or train again",
            ) from None


def _named(name: str) -> ModelConfig:
    return ModelConfig.from_json(
        json.loads((Path(__file__).parent / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    )


MODEL_CONFIGS: dict[str, ModelConfig] = {name: _named(name) for name in ("tiny", "base", "paper")}


def named_config(name: str) -> ModelConfig:
    """One of MODEL_CONFIGS, or a JSON file of the same fields (`name` ends in .json).

    Raises UsageError for an unknown name or an unreadable file, DataError for a JSON object that is no configuration.
    """
    if name in MODEL_CONFIGS:
        return MODEL_CONFIGS[name]
    if not name.endswith(".json"):
        known = ", ".join(MODEL_CONFIGS)
        raise UsageError(f"there is no model `{name}`", hint=f"choose auto, {known}, or a JSON file of a configuration")
    try:
        record = json.loads(Path(name).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the model `{name}`: {error}", hint="encoder/model/configs/ has examples"
        ) from None
    if not isinstance(record, dict):
        raise UsageError(f"the model `{name}` is no JSON object", hint="encoder/model/configs/ has examples")
    return ModelConfig.from_json(record)
