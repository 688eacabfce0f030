"""How a ranker uses the user encoder: not at all, by its vector (late fusion), or by crossing the candidate (early).

- late-last, late-mean: the output after the last event, or the mean of all outputs, independent of the candidate.
  Frozen late-last reads the vector from Feast and does not run the encoder.
- early: the candidate is appended as last token, without action, in DCAT's two passes (encoder/model/dcat.py).
  Options: a learnable token before it (LT); its content added to its token, with a loss that aligns content and id
  (the paper's GraphSAGE variant); both (GSLT). The window of slots is filled in training exactly as in serving
  (rotate replace).
- For every kind except none, the ranker receives the module's output h, the candidate's vector z, h * z and h . z.
  h and z are scaled to floats of about 1.
- Cold start, in training only: CIR gives a tenth of the candidates a random id; IDD drops 0.7 of the outputs of
  candidates younger than 7 days, 0.5 of those younger than 28 days.

Legend: N events of all contexts (jagged), G contexts, C candidates, F features, A attributes, K tasks, E = the model's
dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spoor.encoder.model.dcat import Context, context, context_and_cross
from spoor.encoder.model.events import Candidates, Events
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.ranking.settings import FusionConfig

RANDOM_ID_SHARE = 0.1
_DROPOUT_BY_AGE = ((7.0, 0.7), (28.0, 0.5))  # (age limit in days, share of outputs dropped)


@dataclass(frozen=True, eq=False, kw_only=True)
class RankingBatch(Events):
    """Whole requests: the events of G contexts, each context once, and the shown candidates.

    candidates, shown_on        int64 [C]: item and surface of each candidate; candidate_context int64 [C] in [0, G)
    candidate_gaps, ages_days   float32 [C]: log(1 + seconds since the context's last event); age of the item
    features    float32 [C, F] from Feast, standardised; attributes float32 [C, A] of the item
    user_vectors, item_vectors  float32 [C, E] from Feast, zeros if unknown
    labels      float32 [C, K]
    """

    candidates: Tensor
    shown_on: Tensor
    candidate_context: Tensor
    candidate_gaps: Tensor
    ages_days: Tensor
    features: Tensor
    attributes: Tensor
    user_vectors: Tensor
    item_vectors: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Fused:
    """`outputs` [C, 3 E + 1] for the ranker (no column for kind `none`); `events` [N, E]: user vectors after each
    event, None if not computed; `alignment`: a scalar loss, 0 without content."""

    outputs: Tensor
    events: Tensor | None
    alignment: Tensor


class Fusion(nn.Module):
    """`encoder`: the release's network, owned by this module if the config reads histories; `attributes`: floats per
    item; `dimension`: of Feast's vectors, if there is no encoder."""

    def __init__(
        self, config: FusionConfig, encoder: UserEncoder | None, *, attributes: int, dimension: int = 0
    ) -> None:
        """Raises UsageError as `FusionConfig.check_attributes`."""
        super().__init__()
        config.check_attributes(attributes)
        self.config = config
        self.dimension = dimension if encoder is None else encoder.config.dimension
        self.encoder, self.token, self.content, self.window = None, None, None, 0
        if encoder is None or not config.reads_histories:
            return
        self.encoder = encoder
        self.window = config.window or encoder.config.served_length
        if config.learnable_token != "none":
            self.token = nn.Parameter(torch.empty(encoder.config.width))
        if config.content != "none":
            self.content = nn.Linear(attributes, encoder.config.item_width)
        if config.module == "frozen":
            encoder.requires_grad_(False)

    @property
    def width(self) -> int:
        """Floats added to a candidate's row."""
        return 0 if self.config.kind == "none" else 3 * self.dimension + 1

    def train(self, mode: bool = True) -> Fusion:
        """Keeps a frozen encoder in evaluation mode, without dropout."""
        super().train(mode)
        if self.encoder is not None and self.config.module == "frozen":
            self.encoder.eval()
        return self

    def forward(self, batch: RankingBatch, generator: torch.Generator | None = None) -> Fused:
        """`generator`: for CIR and IDD; they apply in training only."""
        none = batch.features.new_zeros(())
        if self.config.kind == "none":
            return Fused(batch.features.new_zeros(len(batch.candidates), 0), None, none)
        if self.encoder is None:
            return Fused(_row(batch.user_vectors, batch.item_vectors), None, none)
        candidates = self._randomised(batch.candidates, generator)
        if self.config.kind == "early":
            fused, events, alignment = self._crossed(self.encoder, batch, candidates)
        else:
            history = context(self.encoder, batch, token=self.token)
            fused, events, alignment = self._summary(history)[batch.candidate_context], history.outputs, none
        outputs = _row(fused, self.encoder.targets(candidates))
        return Fused(self._dropped_by_age(outputs, batch.ages_days, generator), events, alignment)

    def initialise(self, seed: int) -> None:
        """Initialises parameters that the release lacks: the token (normal, deviation 1 like an event's floats) and the
        content projection (normal, deviation 0.02 / sqrt(A), so that a candidate's token starts close to its id)."""
        generator = torch.Generator().manual_seed(seed)
        if self.token is not None:
            nn.init.normal_(self.token, std=1.0, generator=generator)
        if self.content is not None:
            nn.init.normal_(self.content.weight, std=0.02 / math.sqrt(self.content.in_features), generator=generator)
            nn.init.zeros_(self.content.bias)

    def _crossed(
        self, encoder: UserEncoder, batch: RankingBatch, candidates: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Outputs at the candidates, user vectors after each event (in training only), and the alignment loss."""
        content = self.content(batch.attributes) if self.content is not None else None
        gaps = batch.candidate_gaps
        asked = Candidates(candidates, batch.shown_on, batch.candidate_context, gaps, content)
        crossed, events = context_and_cross(
            encoder, batch, asked, token=self.token, window=self.window, outputs=self.training
        )
        if content is None:
            return crossed, events, batch.features.new_zeros(())
        # Aligns an item's content with its own id, not with a random id from CIR.
        known = batch.candidates > 0
        ids = encoder.items(batch.candidates[known])
        return crossed, events, (1 - F.cosine_similarity(content[known], ids)).sum() / known.sum().clamp_min(1)

    def _summary(self, history: Context) -> Tensor:
        """The user vector of each context, [G, E]; zeros for a context without events."""
        assert history.outputs is not None
        lengths, bounds = history.lengths, history.lengths.cumsum(0)
        some = lengths > 0
        found = history.outputs.new_zeros(len(lengths), history.outputs.shape[1])
        if self.config.kind == "late-last":
            return found.index_put((some.nonzero().squeeze(1),), history.outputs[bounds[some] - 1])
        rows = torch.repeat_interleave(lengths)
        return found.index_add(0, rows, history.outputs) / lengths.clamp_min(1).unsqueeze(1)

    def _randomised(self, candidates: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training or self.config.cold_start == "none":
            return candidates
        assert self.encoder is not None
        known = len(self.encoder.items.flat_rows) - 1
        chosen = torch.rand(candidates.shape, generator=generator) < RANDOM_ID_SHARE
        drawn = torch.randint(1, known + 1, candidates.shape, generator=generator)
        return torch.where(chosen, drawn, candidates)

    def _dropped_by_age(self, outputs: Tensor, ages_days: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training or self.config.cold_start != "cir+idd":
            return outputs
        share = torch.zeros_like(ages_days)
        for days, dropped in reversed(_DROPOUT_BY_AGE):
            share = share.masked_fill(ages_days < days, dropped)
        kept = torch.rand(outputs.shape, generator=generator) >= share.unsqueeze(1)
        return outputs * kept / (1 - share).unsqueeze(1)


def _row(h_CE: Tensor, z_CE: Tensor) -> Tensor:
    scale = math.sqrt(h_CE.shape[1])
    h_CE, z_CE = (F.normalize(x, dim=-1) * scale for x in (h_CE, z_CE))
    product = h_CE * z_CE
    return torch.cat([h_CE, z_CE, product, product.sum(1, keepdim=True) / scale], dim=1)
