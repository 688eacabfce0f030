"""Training by several processes (torchrun), each with a whole copy of the model.

Every process reads the same batches and takes its share of each batch's segments; candidates and weights of pairs are
those of the whole batch, so summed gradients are what one process would have computed. Process 0 alone writes, measures
and speaks. Tables are not divided among processes.
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

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """`rank`: of this process, 0 to `count` - 1. `here`: how many of them share this machine."""

    rank: int = 0
    count: int = 1
    here: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, value: T) -> T:
        """Process 0's value, in every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def sum(self, value: float) -> float:
        """Over all processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def sum_gradients(self, model: nn.Module) -> None:
        """Every parameter's gradient becomes the sum over processes; one that is missing here counts as 0."""
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
        every_rows, every_values = zip(*self._gather((rows, rows_nW)), strict=True)
        indices = torch.cat(every_rows).unsqueeze(0)
        return torch.sparse_coo_tensor(indices, torch.cat(every_values), value.shape).coalesce()

    def _gather(self, value: T) -> list[T]:
        found: list[T] = [value] * self.count
        dist.all_gather_object(found, value)
        return found


ALONE = Processes()


def _kind(value: Tensor) -> str:
    if value.grad is None:
        return "none"
    return "sparse" if value.grad.is_sparse else "dense"


@contextmanager
def processes_of_torchrun() -> Iterator[Processes]:
    """The processes that torchrun has started, joined by gloo (on GPUs by NCCL); ALONE where it has not."""
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))
    finally:
        dist.destroy_process_group()
