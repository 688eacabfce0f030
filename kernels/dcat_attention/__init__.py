"""Crossing attention of DCAT (PinFM, arXiv 2507.12704): each candidate attends to its user's context and itself.

    out[c] = sum_j softmax_j(q[c] . K_j / sqrt(D)) V_j     over j in [the context of candidate_user[c] ; c itself]

Each context is stored once for all its candidates: `candidate_user` is the paper's inverse index. Candidates do not see
one another, so the result equals that of a causal transformer over history + candidate.

Legend: C candidates, N context events of all users together, U users, H heads, D floats per head. User u's context is
the rows context_offsets[u] to context_offsets[u + 1]. `reference.py` is the slow reference, `cpu.py` the fast CPU
version, `triton.py` the GPU version, `dense.py` a version that torch.export can trace.
"""

import numpy as np
import torch
from torch import Tensor

from spoor.kernels.backend import backend_of
from spoor.kernels.dcat_attention.cpu import attend_in_tiles
from spoor.kernels.dcat_attention.dense import attend_densely
from spoor.kernels.offsets import Indexes, check_tensors, checked_offsets

__all__ = ["checked_users", "dcat_attention"]


def dcat_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_context: Tensor,
    v_context: Tensor,
    context_offsets: Tensor,
    candidate_user: Tensor,
    *,
    skipped: Tensor | None = None,
) -> Tensor:
    """Attention of each candidate over its user's context and itself; differentiable in the first five arguments.

    Shapes: q, k, v float [C, H, D] of the candidates, in any order of users; k_context, v_context [N, H, D];
    context_offsets int64 [U + 1] from 0 to N without a decrease; candidate_user int64 [C] in [0, U); skipped int64 [U]:
    number of oldest context rows hidden from the user's candidates (rotate replace), none by default. Returns
    [C, H, D]; the candidate of an empty context attends only to itself. Softmax runs in float32 or wider.
    Raises ValueError if shapes, types or offsets do not fit; the Triton kernels reject float64 and heads wider than 128
    floats.
    """
    if torch.compiler.is_exporting():
        return attend_densely(q, k, v, k_context, v_context, context_offsets, candidate_user, skipped=skipped)
    contexts = {"k_context": k_context, "v_context": v_context}
    check_tensors(q, {"k": k, "v": v}, contexts, rows="candidates")
    bounds = checked_offsets(context_offsets, events=k_context.shape[0], name="context_offsets")
    users = len(bounds) - 1
    readers = checked_users(candidate_user, candidates=q.shape[0], users=users)
    if skipped is not None and (skipped.shape != (users,) or skipped.dtype != torch.int64 or bool((skipped < 0).any())):
        raise ValueError(
            f"skipped must be int64 [{users}] and not below 0; found {skipped.dtype} {list(skipped.shape)}"
            + (f" from {int(skipped.min())}" if skipped.numel() else "")
        )
    if backend_of(q) == "triton":
        from spoor.kernels.dcat_attention.triton import attend_on_gpu

        return attend_on_gpu(q, k, v, k_context, v_context, context_offsets, candidate_user, skipped=skipped)
    return attend_in_tiles(
        q,
        k,
        v,
        k_context,
        v_context,
        starts=bounds[:-1] if skipped is None else np.minimum(bounds[:-1] + skipped.cpu().numpy(), bounds[1:]),
        ends=bounds[1:],
        user=readers,
    )


def checked_users(candidate_user: Tensor, *, candidates: int, users: int) -> Indexes:
    """`candidate_user` int64 [C] on the host. Raises ValueError unless all are in [0, users)."""
    if candidate_user.shape != (candidates,) or candidate_user.dtype != torch.int64:
        raise ValueError(
            f"candidate_user must be int64 [{candidates}]; found {candidate_user.dtype} {list(candidate_user.shape)}"
        )
    found = candidate_user.cpu().numpy()
    if candidates and (found.min() < 0 or found.max() >= users):
        raise ValueError(f"candidate_user must lie in [0, {users}); found {found.min()} to {found.max()}")
    return found
