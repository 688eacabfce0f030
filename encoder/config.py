"""The size and shape of a model, part of its identity: the same numbers always build the same network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from activity.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Raises ValueError when the numbers do not fit together."""

    max_events: int  # newest events of a user that the model reads
    hash_functions: int  # tables; an item's rows in all of them, concatenated, are its embedding
    table_rows: int  # rows of each table; row 0 is reserved for unknown items
    table_width: int  # floats in one row
    width: int  # floats of an event inside the transformer
    layers: int  # transformer blocks
    heads: int  # attention heads of each block
    feed_forward_width: int  # floats inside a block's feed-forward part
    dimension: int  # floats of a user vector and of an item vector
    dropout: float = 0.2  # share of activations dropped in training
    temperature: float = 0.05  # of the loss at the start; learned from there
    temperature_floor: float = 0.01  # which the learned temperature never goes below

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "int" and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1; found {getattr(self, field.name)}")
        if self.table_rows < 2:
            raise ValueError(f"table_rows must be at least 2 (row 0 is reserved); found {self.table_rows}")
        if self.width % (2 * self.heads):
            raise ValueError(
                "width must be a multiple of 2 x heads, since rotary positions turn pairs; "
                f"found {self.width} and {self.heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); found {self.dropout}")
        if not 0 < self.temperature_floor < self.temperature:
            raise ValueError(
                "temperature must be above temperature_floor, and that above 0; "
                f"found {self.temperature} and {self.temperature_floor}"
            )

    @property
    def item_width(self) -> int:
        """Floats of an item's embedding: its rows in all tables, concatenated."""
        return self.hash_functions * self.table_width

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


MODEL_CONFIGS: dict[str, ModelConfig] = {
    # For tests: trains a step in milliseconds.
    "tiny": ModelConfig(
        max_events=32,
        hash_functions=2,
        table_rows=256,
        table_width=8,
        width=16,
        layers=2,
        heads=2,
        feed_forward_width=32,
        dimension=16,
    ),
    # For some thousand items and tens of thousands of users, on two processor cores.
    "base": ModelConfig(
        max_events=256,
        hash_functions=4,
        table_rows=8_192,
        table_width=16,
        width=64,
        layers=2,
        heads=2,
        feed_forward_width=256,
        dimension=64,
    ),
}
