"""The peers of DCAT and of jagged attention: the same network, with the same weights, run as people usually run it.

Sequences of a batch are right-padded to one length, attention is PyTorch's fused one (SDPA), causal; every history +
candidate is a sequence of its own. Only the layout differs from Spoor's paths: blocks, embeddings and heads are shared.

Legend: B sequences, L events of each, padding included, H heads, D floats per head, C = config.width, E =
config.dimension, U users, K candidates.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from spoor.encoder.model.block import Block
from spoor.encoder.model.config import MODEL_CONFIGS, ModelConfig
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.kernels.jagged_attention import jagged_attention


def model_of(*, items: int, width: int, length: int, layers: int, dtype: torch.dtype) -> UserEncoder:
    """A network with random weights whose work is that of its blocks: an item is one row, projections are none. On the
    default device."""
    device = torch.get_default_device()
    config = replace(
        with_direct_items(MODEL_CONFIGS["base"], length=length),
        table_width=width,
        width=width,
        dimension=width,
        layers=layers,
        heads=width // 64,
        feed_forward_width=4 * width,
        projections="residual",
        projection_width=0,
        input_dropout=0.0,
        dropout=0.0,
    )
    with torch.device("cpu"):  # where random numbers are drawn
        model = UserEncoder(config, item_rows=torch.arange(items + 1)[:, None], actions=1, surfaces=1)
        model.initialise(0)
    return model.eval().to(device, dtype)


def with_direct_items(config: ModelConfig, *, length: int) -> ModelConfig:
    """A row of the model's width for each item, and histories of `length`."""
    return replace(
        config,
        segment_length=length,
        served_length=length,
        items="direct",
        hash_functions=1,
        table_rows=0,
        table_width=config.width,
    )


def padded_block(block: Block, x_BLC: Tensor, turn: Tensor) -> Tensor:
    """One block over [B, L, C]; `turn`: of positions [B * L]."""
    sequences, length, width = x_BLC.shape
    x = x_BLC.reshape(-1, width)
    q, k, v = (y.view(sequences, length, *y.shape[1:]).transpose(1, 2) for y in block.queries_keys_values(x, turn))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return block.after_attention(x, attended.transpose(1, 2).flatten(0, 1)).view(x_BLC.shape)


def padded_blocks(model: UserEncoder, x_BLC: Tensor, *, blocks: int) -> tuple[Tensor, Tensor]:
    """The first `blocks` blocks over [B, L, C], and the turns of the positions [B * L]."""
    sequences, length, _ = x_BLC.shape
    turn = model.rotary(torch.arange(length).repeat(sequences))
    for block in model.every_block[:blocks]:
        x_BLC = padded_block(block, x_BLC, turn)
    return x_BLC, turn


def padded_last_block(block: Block, x_BLC: Tensor, turn: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The last block's output at the last place alone, [B, C]: of the others only keys and values are computed.
    `lengths` int64 [B]: of sequences that are padded on the right, whose last place is that of their last event."""
    sequences, length, width = x_BLC.shape
    k, v = (
        y.view(sequences, length, *y.shape[1:]).transpose(1, 2)
        for y in block.keys_values(x_BLC.reshape(-1, width), turn)
    )
    ends = torch.full((sequences,), length) if lengths is None else lengths
    rows = torch.arange(sequences) * length + ends - 1
    last = x_BLC.reshape(-1, width).index_select(0, rows)
    q = block.queries(last, turn.index_select(0, rows))
    mask = None if bool((ends == length).all()) else (torch.arange(length) < ends[:, None])[:, None, None]
    attended = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=mask)
    return block.after_attention(last, attended.squeeze(2))


def naive_cross(
    model: UserEncoder,
    history_UNC: Tensor,
    candidates_KC: Tensor,
    candidate_user: Tensor,
    *,
    batch: int,
    skip_last: bool = True,
) -> Tensor:
    """The output at each candidate [K, E] of the transformer over every history + candidate, `batch` sequences at once.

    `history_UNC`, `candidates_KC`: what enters the first block (each history is embedded once, which spares this peer
    what an even more naive one would do); `skip_last`: whether the last layer stops at the candidates, as DCAT's does.
    """
    found = []
    for some in torch.arange(len(candidate_user)).split(batch):
        x = torch.cat([history_UNC[candidate_user[some]], candidates_KC[some, None]], dim=1)
        found.append(naive_outputs(model, x, skip_last=skip_last))
    return torch.cat(found)


def naive_outputs(model: UserEncoder, x_BLC: Tensor, *, skip_last: bool) -> Tensor:
    """What comes out at the last place [B, E]; without `skip_last` the last layer computes all outputs all the same."""
    last = model.every_block[-1]
    x_BLC, turn = padded_blocks(model, x_BLC, blocks=model.config.layers - 1)
    x_BC = padded_last_block(last, x_BLC, turn) if skip_last else padded_block(last, x_BLC, turn)[:, -1]
    return model.user_vectors(x_BC)


def gathering_cross(
    model: UserEncoder, history_UNC: Tensor, candidates_KC: Tensor, candidate_user: Tensor, *, batch: int
) -> Tensor:
    """As `naive_cross`, by one context pass whose keys and values are then copied for each candidate."""
    users, length, width = history_UNC.shape
    turn = model.rotary(torch.arange(length).repeat(users))
    offsets = torch.arange(users + 1) * length
    *first, last = model.every_block
    x, caches = history_UNC.reshape(-1, width), []
    for block in first:
        q, *cached = block.queries_keys_values(x, turn)
        caches.append(cached)
        x = block.after_attention(x, jagged_attention(q, *cached, offsets))
    caches.append(last.keys_values(x, turn))
    # A free place after each context takes the candidate's own, so that keys and values are copied once.
    caches = [[F.pad(y.view(users, length, *y.shape[1:]), (0, 0, 0, 0, 0, 1)) for y in cached] for cached in caches]
    found = []
    for some in torch.arange(len(candidate_user)).split(batch):
        x, at = candidates_KC[some], model.rotary(torch.full((len(some),), length))
        for block, cached in zip(model.every_block, caches, strict=True):
            q, *own = block.queries_keys_values(x, at)
            k, v = (y.index_select(0, candidate_user[some]) for y in cached)
            k[:, -1], v[:, -1] = own
            attended = F.scaled_dot_product_attention(q.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2))
            x = block.after_attention(x, attended.squeeze(2))
        found.append(x)
    return model.user_vectors(torch.cat(found))
