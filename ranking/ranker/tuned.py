"""A fine-tuned ranker: host, module and all that scoring needs, in one file.

NAME.safetensors    weights, vocabulary, scales of the features; its JSON header: configurations, tasks, columns,
                    the release it started from, SHA-256 over everything. Loading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy
from torch import Tensor, nn

from spoor.activity.hashing import HASH_VERSION, READABLE_HASH_VERSIONS
from spoor.base.errors import DataError, UsageError
from spoor.base.files import atomic_write, refuse_foreign_file
from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.hashing import ROW_HASH_VERSION
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.inference import new_model
from spoor.ranking.features.attributes import AttributeLayout
from spoor.ranking.features.dataset import Floats, Scale
from spoor.ranking.ranker.fusion import Fusion, RankingBatch
from spoor.ranking.ranker.host import Host, HostConfig
from spoor.ranking.ranker.rows import BatchMaker, RankingData
from spoor.ranking.settings import FusionConfig

FORMAT: dict[str, Any] = {"format": "spoor-ranker", "format_version": 1}
_SCORED_ROWS = 2_048
_MODEL = "model."


@dataclass(frozen=True, eq=False)
class Predictions:
    """`logits` [C, K] of the ranker, `own` [C, K] of the module alone (None if it is not trained); `events`,
    `alignment` as in `Fused`."""

    logits: Tensor
    own: Tensor | None
    events: Tensor | None
    alignment: Tensor


class RankingModel(nn.Module):
    """The host over features, attributes and the module's outputs, with one logit per task."""

    def __init__(self, fusion: Fusion, host: HostConfig, *, features: int, attributes: int, tasks: int) -> None:
        super().__init__()
        self.fusion = fusion
        self.host = Host(host, inputs=features + attributes + fusion.width, tasks=tasks)
        trained = fusion.config.reads_histories and fusion.config.module == "tuned"
        self.own_tasks = nn.Linear(fusion.width, tasks) if trained else None

    def forward(self, batch: RankingBatch, generator: torch.Generator | None = None) -> Predictions:
        """One prediction per candidate; `generator` as for `Fusion`."""
        fused = self.fusion(batch, generator)
        logits = self.host(torch.cat([batch.features, batch.attributes, fused.outputs], dim=1))
        own = self.own_tasks(fused.outputs) if self.own_tasks is not None else None
        return Predictions(logits, own, fused.events, fused.alignment)

    def initialise(self, seed: int) -> None:
        """Initialises all but the encoder, which comes from a release; the module's own logits start at 0."""
        self.fusion.initialise(seed)
        self.host.initialise(seed)
        if self.own_tasks is not None:
            nn.init.zeros_(self.own_tasks.weight)
            nn.init.zeros_(self.own_tasks.bias)


@dataclass(frozen=True, eq=False)
class TunedRanker:
    """`groups`: features that are null together, in order; `about`: the release, its space and the settings."""

    model: RankingModel
    vocabulary: Vocabulary
    scale: Scale
    groups: tuple[slice, ...]
    layout: AttributeLayout
    tasks: tuple[str, ...]
    about: Mapping[str, Any]

    def score(self, data: RankingData) -> Floats:
        """Task probabilities float32 [n, K], in row order. Raises DataError for data with another layout."""
        if data.features.groups != self.groups or data.layout != self.layout:
            raise DataError(
                f"the ranker was trained on {len(self.scale.mean)} features and {self.layout.width} attributes, found "
                f"{data.features.values.shape[1]} and {data.layout.width}, or others",
                hint="read the same features, and the attributes in the ranker's layout, or fine-tune again",
            )
        maker = BatchMaker(data, self.vocabulary, self.scale, window=self.model.fusion.window)
        found = np.empty((len(data.impressions.item_ids), len(self.tasks)), np.float32)
        offsets = data.impressions.offsets
        self.model.eval()
        with torch.inference_mode():
            for requests in maker.batches(np.arange(data.impressions.requests), rows=_SCORED_ROWS):
                batch, _ = maker.batch(requests)
                logits = self.model(batch).logits
                found[offsets[requests[0]] : offsets[requests[-1] + 1]] = logits.sigmoid().numpy()
        return found


def build_model(
    encoder: UserEncoder | None,
    config: FusionConfig,
    host: HostConfig,
    *,
    features: int,
    attributes: int,
    tasks: int,
    dimension: int = 0,
) -> RankingModel:
    """A ranker around the encoder, its own parameters not yet initialised; arguments as for `Fusion`."""
    fusion = Fusion(config, encoder, attributes=attributes, dimension=dimension)
    return RankingModel(fusion, host, features=features, attributes=attributes, tasks=tasks)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raises UsageError if no ranker file may be written at `path`."""
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder", hint="name the file: it ends in .safetensors")
    refuse_foreign_file(path, ours=lambda head: FORMAT["format"].encode() in head, what="ranker")
    if path.exists() and not overwrite:
        raise UsageError(f"`{path}` exists already", hint="choose another name, or replace it with --overwrite")


def save_ranker(path: Path, ranker: TunedRanker, *, overwrite: bool = False) -> None:
    """Writes the file atomically. Raises UsageError as `check_free`, InfrastructureError."""
    check_free(path, overwrite=overwrite)
    vocabulary, fusion = ranker.vocabulary, ranker.model.fusion
    ids = [item.encode() for item in vocabulary.item_ids]
    arrays: dict[str, npt.NDArray[Any]] = {
        "items": vocabulary.items,
        "actions": vocabulary.actions,
        "surfaces": vocabulary.surfaces,
        "item_ids": np.frombuffer(b"".join(ids), np.uint8),
        "item_id_lengths": np.array([len(item) for item in ids], np.int64),
        "mean": ranker.scale.mean,
        "deviation": ranker.scale.deviation,
        "groups": np.array([[group.start, group.stop] for group in ranker.groups], np.int64).reshape(-1, 2),
    }
    arrays |= {_MODEL + name: np.ascontiguousarray(value) for name, value in ranker.model.state_dict().items()}
    header = FORMAT | {
        "hash_version": HASH_VERSION,
        "row_hash_version": ROW_HASH_VERSION,
        "encoder": fusion.encoder.config.to_json() if fusion.encoder is not None else None,
        "dimension": fusion.dimension,
        "fusion": asdict(fusion.config),
        "host": asdict(ranker.model.host.config),
        "attributes": ranker.layout.to_json(),
        "tasks": list(ranker.tasks),
        "about": dict(ranker.about),
    }
    header["sha256"] = _digest(arrays, header)
    atomic_write(path, safetensors_numpy.save(arrays, metadata={"spoor": json.dumps(header, sort_keys=True)}))


def load_ranker(path: Path) -> TunedRanker:
    """Raises UsageError if the file cannot be read, DataError if it is damaged or not a ranker."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the ranker `{path}`: {error.strerror}",
            hint="`spoor finetune --release NAME --out FILE` makes one",
        ) from None
    try:
        arrays = safetensors_numpy.load(data)
        header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["spoor"])
        expected = FORMAT | {"row_hash_version": ROW_HASH_VERSION}
        found = {key: header[key] for key in (*expected, "hash_version")}
        if not expected.items() <= found.items() or found["hash_version"] not in READABLE_HASH_VERSIONS:
            raise DataError(
                f"`{path}` is {found}, expected {expected} and one of the hash versions {READABLE_HASH_VERSIONS}",
                hint="use the version of Spoor that wrote it",
            )
        if header.pop("sha256") != _digest(arrays, header):
            raise DataError(f"`{path}` is damaged: its checksum does not match", hint="restore it, or fine-tune again")
        return _assembled(arrays, header)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"`{path}` is not a ranker: {error!r}", hint="restore it, or fine-tune again") from None


def _assembled(arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]) -> TunedRanker:
    ends = np.cumsum(arrays["item_id_lengths"])
    text = arrays["item_ids"].tobytes()
    ids = tuple(text[end - length : end].decode() for end, length in zip(ends, arrays["item_id_lengths"], strict=True))
    actions, surfaces = (
        arrays[name].astype(np.uint64) for name in ("actions", "surfaces")
    )  # 16 bits in hash version 1
    vocabulary = Vocabulary(arrays["items"], actions, surfaces, ids)
    groups = tuple(slice(int(start), int(stop)) for start, stop in arrays["groups"])
    layout = AttributeLayout.from_json(header["attributes"])
    fusion = FusionConfig(**header["fusion"])
    encoder = ModelConfig.from_json(header["encoder"]) if header["encoder"] is not None else None
    model = build_model(
        new_model(encoder, vocabulary) if encoder is not None and fusion.reads_histories else None,
        fusion,
        HostConfig(**header["host"]),
        features=len(arrays["mean"]) + len(groups),
        attributes=layout.width,
        tasks=len(header["tasks"]),
        dimension=header["dimension"] if encoder is None else encoder.dimension,
    )
    weights = {name.removeprefix(_MODEL): value for name, value in arrays.items() if name.startswith(_MODEL)}
    if model.fusion.encoder is None:  # older files may contain an unused encoder
        weights = {name: value for name, value in weights.items() if not name.startswith("fusion.encoder.")}
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    if model.fusion.encoder is not None:
        model.fusion.encoder.freeze()
    return TunedRanker(
        model=model.eval(),
        vocabulary=vocabulary,
        scale=Scale(arrays["mean"], arrays["deviation"]),
        groups=groups,
        layout=layout,
        tasks=tuple(header["tasks"]),
        about=header["about"],
    )


def _digest(arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]) -> str:
    whole = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        whole.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        whole.update(np.ascontiguousarray(arrays[name]).tobytes())
    return whole.hexdigest()
