"""AdamW and averaged weights, dense or by rows.

An item table with a sparse gradient is updated only in the rows that the step read. Moments, weight decay and average
of other rows do not change, so the cost of a step does not depend on the table's size. All other parameters use
PyTorch's fused AdamW.

Legend: W floats in a row, n rows that a step read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spoor.encoder.model.user_encoder import UserEncoder

BETAS = (0.9, 0.98)
_EPSILON = 1e-8
_AVERAGE_RISES = 10  # the decay starts low and rises: steps / (steps + 9), up to average_decay


class Optimiser:
    """AdamW over all parameters of a model, and the average of its weights."""

    def __init__(self, model: UserEncoder, *, weight_decay: float, average_decay: float) -> None:
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self._weight_decay = weight_decay
        self._average_decay = average_decay
        self._start()

    def _start(self) -> None:
        table = self.model.items.weight if self.model.items.sparse else None
        self._table = table
        dense = [value for value in self.model.parameters() if value is not table]
        self._weights = [value.detach() for value in dense]  # share memory with the parameters
        self._averages = [value.detach() for value in self.average.parameters() if value is not self._average_table]
        self._dense = torch.optim.AdamW(
            dense, lr=0.0, betas=BETAS, eps=_EPSILON, weight_decay=self._weight_decay, fused=True
        )
        self.steps = 0
        self._first = torch.zeros_like(table) if table is not None else None
        self._second = torch.zeros_like(table) if table is not None else None

    @property
    def _average_table(self) -> nn.Parameter | None:
        return self.average.items.weight if self.model.items.sparse else None

    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Sets model and average to these weights, and resets moments and the step count."""
        self.model.load_state_dict(weights)
        self.average.load_state_dict(weights)
        self._start()

    def zero_grad(self) -> None:
        for value in self.model.parameters():
            value.grad = None

    def gradients(self) -> list[Tensor]:
        """All gradients; of a sparse gradient its n rows, each once (coalesced)."""
        found: list[Tensor] = []
        for value in self.model.parameters():
            if value.grad is not None:
                if value.grad.is_sparse and not value.grad.is_coalesced():
                    value.grad = value.grad.coalesce()
                found.append(value.grad.values() if value.grad.is_sparse else value.grad)
        return found

    def clip(self, longest: float) -> float:
        """Clips the global gradient norm to `longest`; returns the norm before clipping."""
        gradients = self.gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        shorter = (longest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shorter)
        return norm.item()

    def step(self, rate: float) -> None:
        """Updates the weights at this learning rate, then their average."""
        self.steps += 1
        for group in self._dense.param_groups:
            group["lr"] = rate
        self._dense.step()
        kept = min(self._average_decay, self.steps / (_AVERAGE_RISES + self.steps - 1))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.lerp_(weight, 1 - kept)
        if self._table is not None and self._table.grad is not None:
            self._step_rows(self._table, self._table.grad, rate, kept)

    @torch.no_grad()
    def _step_rows(self, table: Tensor, gradient: Tensor, rate: float, kept: float) -> None:
        """AdamW for the rows of a coalesced sparse gradient."""
        assert self._first is not None and self._second is not None and self._average_table is not None
        rows, gradient_nW = gradient.indices()[0], gradient.values()
        first = self._first[rows].lerp_(gradient_nW, 1 - BETAS[0])
        second = self._second[rows].mul_(BETAS[1]).addcmul_(gradient_nW, gradient_nW, value=1 - BETAS[1])
        self._first[rows], self._second[rows] = first, second
        spread = (second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(_EPSILON)
        weights = table[rows].mul_(1 - rate * self._weight_decay)
        weights.addcdiv_(first, spread, value=-rate / (1 - BETAS[0] ** self.steps))
        table[rows] = weights
        self._average_table[rows] = self._average_table[rows].lerp_(weights, 1 - kept)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and the number of steps, by name; `load` is the inverse."""
        found = {"steps": torch.tensor(self.steps)}
        if self._first is not None and self._second is not None:
            found |= {"table.first": self._first, "table.second": self._second}
        for index, values in self._dense.state_dict()["state"].items():
            found |= {f"{index}.{name}": value for name, value in values.items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError if the tensors are of another model."""
        self.steps = int(tensors["steps"])
        if self._first is not None and self._second is not None:
            self._first.copy_(tensors["table.first"])
            self._second.copy_(tensors["table.second"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, key = name.partition(".")
            if index.isdigit():
                moments.setdefault(int(index), {})[key] = tensor
        groups = self._dense.state_dict()["param_groups"]
        self._dense.load_state_dict({"state": moments, "param_groups": groups})
