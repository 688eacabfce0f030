"""Selects the implementation of the operators: Triton for tensors on a GPU, PyTorch elsewhere.

One choice holds for all operators of a process and can be forced: by `kernels.backend` in the settings, in every
process that computes (the command's, the encoders', Beam's workers), or by tests, which run the Triton kernels in its
interpreter (TRITON_INTERPRET=1 before the import).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spoor.base.errors import UsageError
from spoor.kernels.settings import Choice

if TYPE_CHECKING:
    from torch import Tensor

Backend = Literal["cpu", "triton"]

_forced: Choice = "auto"


def force(choice: Choice) -> None:
    """Sets the choice for this process from now on."""
    global _forced
    _forced = choice


def choice() -> Choice:
    """The forced choice of this process, to pass to child processes."""
    return _forced


def require_usable() -> None:
    """Raises UsageError if Triton is forced and PyTorch finds no GPU."""
    import torch

    if _forced == "triton" and not torch.cuda.is_available() and not _interpreting():
        raise _no_gpu("PyTorch finds none here")


def backend_of(x: Tensor) -> Backend:
    """The backend for this tensor. Raises UsageError if Triton is forced and the tensor is not on a GPU."""
    if _forced != "triton":
        return "triton" if _forced == "auto" and x.is_cuda else "cpu"
    if not x.is_cuda and not _interpreting():
        raise _no_gpu(f"found {x.device}")
    return "triton"


def _no_gpu(found: str) -> UsageError:
    return UsageError(
        f"kernels.backend is triton, which needs tensors on a GPU; {found}",
        hint='set kernels.backend to "auto": it takes Triton where there is a GPU',
    )


def _interpreting() -> bool:
    from triton import knobs  # takes 0.3 s; a process without a GPU does not need it

    return knobs.runtime.interpret
