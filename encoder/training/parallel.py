"""Data-parallel training with torchrun: each process has a full copy of the model.

Every process reads the same batches and computes its share of each batch's segments. Candidates and pair weights are
those of the whole batch, so the summed gradients equal those of a single process. Only process 0 writes, evaluates and
prints. Tables are not sharded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spoor.base.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """`rank`: of this process, 0 to `count` - 1. `here`: number of processes on this machine."""

    rank: int = 0
    count: int = 1
    here: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, value: T) -> T:
        """Broadcasts the value of process 0 to every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """A barrier over all processes."""
        if self.count > 1:
            dist.barrier()

    def sum(self, value: float) -> float:
        """The sum over all processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def sum_gradients(self, model: nn.Module) -> None:
        """Replaces every gradient by its sum over processes; a missing gradient counts as 0."""
        if self.count == 1:
            return
        parameters = list(model.parameters())
        everywhere = self._gather([_kind(value) for value in parameters])
        for value, kinds in zip(parameters, zip(*everywhere, strict=True), strict=True):
            if "sparse" in kinds:
                value.grad = self._sum_sparse(value)
            elif "dense" in kinds:
                value.grad = torch.zeros_like(value) if value.grad is None else value.grad
                dist.all_reduce(value.grad)

    def _sum_sparse(self, value: Tensor) -> Tensor:
        if value.grad is None:
            rows, rows_nW = torch.empty(0, dtype=torch.int64), value.new_empty(0, *value.shape[1:])
        else:
            gradient = value.grad.coalesce()
            rows, rows_nW = gradient.indices()[0], gradient.values()
        # Through CPU memory: a tensor sent from another process's GPU would be loaded on that GPU.
        every_rows, every_values = zip(*self._gather((rows.cpu(), rows_nW.cpu())), strict=True)
        indices = torch.cat(every_rows).unsqueeze(0).to(value.device)
        every_nW = torch.cat(every_values).to(value.device)
        return torch.sparse_coo_tensor(indices, every_nW, value.shape).coalesce()

    def _gather(self, value: T) -> list[T]:
        found: list[T] = [value] * self.count
        dist.all_gather_object(found, value)
        return found


ALONE = Processes()


def _kind(value: Tensor) -> str:
    if value.grad is None:
        return "none"
    return "sparse" if value.grad.is_sparse else "dense"


def gpu_of(local_rank: int, *, here: int, gpus: int) -> int | None:
    """The GPU of process `local_rank`, for `here` processes and `gpus` GPUs on a machine: one GPU per process. None if
    there is no GPU. Raises UsageError if there are too few."""
    if gpus == 0:
        return None
    if here > gpus:
        raise UsageError(
            f"torchrun started {here} processes on this machine, which has {gpus} GPU{'s' * (gpus > 1)}: "
            "each process needs one of its own",
            hint=f"start it with --nproc-per-node {gpus}",
        )
    return local_rank


@contextmanager
def processes_of_torchrun() -> Iterator[Processes]:
    """The processes started by torchrun, connected by gloo (on GPUs by NCCL, one GPU each); ALONE without torchrun.
    Raises UsageError if there are too few GPUs."""
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    gpu = gpu_of(int(os.environ["LOCAL_RANK"]), here=here, gpus=torch.cuda.device_count())
    if gpu is not None:
        torch.cuda.set_device(gpu)  # before NCCL starts; from here on "cuda" means this GPU
    dist.init_process_group("gloo" if gpu is None else "cpu:gloo,cuda:nccl")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), here)
    finally:
        dist.destroy_process_group()
