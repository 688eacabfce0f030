"""The peers of DCAT and of jagged attention: the same network, with the same weights, run as people usually run it.

Sequences of a batch are right-padded to one length, attention is PyTorch's fused one (SDPA), causal; every history +
candidate is a sequence of its own. Only the layout differs from Spoor's paths: blocks, embeddings and heads are shared.

Legend: B sequences, L events of each, padding included, H heads, D floats per head, C = config.width, E =
config.dimension, U users, K candidates.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from encoder.config import MODEL_CONFIGS, ModelConfig
from encoder.model import Block, Turn, UserEncoder
from kernels.jagged_attention import jagged_attention


def model_of(*, items: int, width: int, length: int, layers: int, dtype: torch.dtype) -> UserEncoder:
    """A network with random weights whose work is that of its blocks: an item is one row, projections are none. On the
    default device."""
    device = torch.get_default_device()
    config: ModelConfig = replace(
        MODEL_CONFIGS["base"],
        segment_length=length,
        served_length=length,
        items="direct",
        hash_functions=1,
        table_rows=0,
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


def blocks_of(model: UserEncoder) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def padded_block(block: Block, x_BLC: Tensor, turn: Turn) -> Tensor:
    """One block over [B, L, C]; `turn`: of positions [B * L]."""
    sequences, length, width = x_BLC.shape
    x = x_BLC.reshape(-1, width)
    q, k, v = (y.view(sequences, length, *y.shape[1:]).transpose(1, 2) for y in block.queries_keys_values(x, turn))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return block.after_attention(x, attended.transpose(1, 2).flatten(0, 1)).view(x_BLC.shape)


def padded_last_block(block: Block, x_BLC: Tensor, turn: Turn) -> Tensor:
    """The last block's output at the last place alone, [B, C]: of the others only keys and values are computed."""
    sequences, length, width = x_BLC.shape
    last = x_BLC[:, -1]
    k, v = (
        y.view(sequences, length, *y.shape[1:]).transpose(1, 2)
        for y in block.keys_values(x_BLC.reshape(-1, width), turn)
    )
    at_last = tuple(angle.view(sequences, length, -1)[:, -1] for angle in turn)
    q = block.queries_keys_values(last, (at_last[0], at_last[1]))[0]
    attended = F.scaled_dot_product_attention(q.unsqueeze(2), k, v)
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
    sequences, length, _ = x_BLC.shape
    turn = model.rotary(torch.arange(length).repeat(sequences))
    *first, last = blocks_of(model)
    for block in first:
        x_BLC = padded_block(block, x_BLC, turn)
    x_BC = padded_last_block(last, x_BLC, turn) if skip_last else padded_block(last, x_BLC, turn)[:, -1]
    return model.user_vectors(x_BC)


def gathering_cross(
    model: UserEncoder, history_UNC: Tensor, candidates_KC: Tensor, candidate_user: Tensor, *, batch: int
) -> Tensor:
    """As `naive_cross`, by one context pass whose keys and values are then copied for each candidate."""
    users, length, width = history_UNC.shape
    turn = model.rotary(torch.arange(length).repeat(users))
    offsets = torch.arange(users + 1) * length
    *first, last = blocks_of(model)
    x, caches = history_UNC.reshape(-1, width), []
    for block in first:
        q, k, v = block.queries_keys_values(x, turn)
        caches.append((k, v))
        x = block.after_attention(x, jagged_attention(q, k, v, offsets))
    caches.append(last.keys_values(x, turn))
    found = []
    for some in torch.arange(len(candidate_user)).split(batch):
        x, at = candidates_KC[some], model.rotary(torch.full((len(some),), length))
        for block, cache in zip(blocks_of(model), caches, strict=True):
            q, *own = block.queries_keys_values(x, at)
            k, v = (
                torch.cat([y.view(users, length, *y.shape[1:]).index_select(0, candidate_user[some]), z[:, None]], 1)
                for y, z in zip(cache, own, strict=True)
            )
            attended = F.scaled_dot_product_attention(q.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2))
            x = block.after_attention(x, attended.squeeze(2))
        found.append(x)
    return model.user_vectors(torch.cat(found))


def best_seconds(runs: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """The best time of each. They take turns, so that what else the machine does meets all of them, and each runs once
    a round: a minimum over more runs would favour its side. One round before is not counted."""
    found: dict[str, float] = dict.fromkeys(runs, float("inf"))
    for turn in range(rounds + 1):
        for name, run in runs.items():
            _finished()
            started = time.perf_counter()
            run()
            _finished()
            took = time.perf_counter() - started
            found[name] = min(found[name], took) if turn else found[name]
    return found


def _finished() -> None:
    """Waits for a GPU's work, where there is one."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of weights and activations"
    )
    parser.add_argument("--threads", type=int, help="of the processor; default: all cores")


def use_device(options: argparse.Namespace) -> torch.dtype:
    """From now on everything is made on --device; returns --dtype. Ends the process where there is no such device."""
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"no device `{options.device}` here: PyTorch finds no GPU")
    torch.set_default_device(options.device)
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    return getattr(torch, options.dtype)


def fastest(run: Callable[[int], object], sizes: Sequence[int]) -> int:
    """The batch size with which `run` takes least time."""
    found = best_seconds({str(size): partial(run, size) for size in sizes}, rounds=3)
    return int(min(found, key=found.__getitem__))
