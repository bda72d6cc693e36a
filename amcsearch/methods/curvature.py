"""Second derivatives of the loss: the diagonal of the Hessian, by gates on units or by single weights.

    Hutchinson 1990:  diag(H) ~ mean over probes of z * (H z),  z of independent random signs (Rademacher)

whose variance of entry i is sum_{j != i} H_ij^2; Gaussian probes add 2 H_ii^2. A product H z is a second backward pass
through the gradient's graph (Pearlmutter 1994).

The gate a_u of a unit multiplies the weights of everything that reads it, W' = a_u W on the unit's slice: linear in
a_u, so that d^2 L/da_u^2 = v' H v with v = those weights and 0 elsewhere: the block of the full Hessian, cross terms
included. One probe covers all units, and there are far fewer entries off the diagonal than among weights. Without
probes each unit takes a product of its own, and the block is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from amcsearch.core import Side
from amcsearch.graph import Batch, Trace, channels_first, evaluating
from amcsearch.methods.first_order import LossFunction, called, readers, replaced
from amcsearch.methods.needs import Curvature

__all__ = ["GateTable", "curvature", "diagonal"]


@dataclass(frozen=True)
class GateTable:
    """Which entry of each reader's axis belongs to which unit: (tensor, dim) → groups with (positions, units)."""

    sizes: Mapping[str, int]
    parts: Mapping[tuple[str, int], tuple[tuple[str, NDArray[np.int64], NDArray[np.int64]], ...]]

    @classmethod
    def of(cls, trace: Trace) -> "GateTable":
        """Read it off the trace; channels of one unit that share a position (grouped convolution) count once."""
        reading = readers(trace)
        parts: dict[tuple[str, int], list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]] = {}
        for group, slices in trace.slices.items():
            units = trace.units[group]  # (n_units, unit)
            for part in slices:
                if part.side is Side.IN and part.tensor in reading:
                    flat = part.positions[units].reshape(len(units), -1)
                    owner = np.repeat(np.arange(len(units)), flat.shape[1])
                    positions, first = np.unique(flat.ravel(), return_index=True)
                    parts.setdefault((part.tensor, part.dim), []).append((group, positions, owner[first]))
        sizes = {group: len(units) for group, units in trace.units.items()}
        return cls(sizes, {key: tuple(value) for key, value in parts.items()})

    def along(
        self, values: Mapping[str, Tensor], key: tuple[str, int], length: int, ndim: int, default: float
    ) -> Tensor:
        """One value a position of the tensor's axis, broadcastable to the tensor; ``rest`` where no group reads."""
        sample = next(iter(values.values()))
        vector = torch.full((length,), default, dtype=sample.dtype, device=sample.device)
        for group, positions, units in self.parts[key]:
            here = torch.from_numpy(units).to(sample.device)
            vector = vector.index_put((torch.from_numpy(positions).to(sample.device),), values[group][here])
        return vector.reshape([length if axis == key[1] else 1 for axis in range(ndim)])

    def spread(self, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give every weight that reads a unit an even share of the unit's value."""
        readings = dict.fromkeys(self.sizes, 0.0)
        for (name, dim), parts in self.parts.items():
            for group, positions, _ in parts:
                per_position = weights[name].numel() / weights[name].shape[dim]
                readings[group] += per_position * len(positions) / self.sizes[group]
        shares = {group: value / max(readings[group], 1.0) for group, value in values.items()}
        return {
            key[0]: self.along(shares, key, weights[key[0]].shape[key[1]], weights[key[0]].ndim, 0.0)
            for key in self.parts
        }


def diagonal(gradient: Tensor, leaves: list[Tensor], probes: int, generator: torch.Generator) -> Tensor:
    """Diagonal of the derivative of ``gradient`` (n,) by ``leaves`` of n numbers in all; exact without probes."""

    def product(z: Tensor) -> Tensor:
        products = torch.autograd.grad(
            gradient, leaves, z, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([f.flatten() for f in products])

    if not gradient.requires_grad:  # linear in everything
        return torch.zeros_like(gradient)
    if probes == 0:
        return torch.stack([product(row)[i] for i, row in enumerate(torch.eye(len(gradient)).to(gradient))])
    total = torch.zeros_like(gradient)
    for _ in range(probes):
        z = torch.randint(0, 2, gradient.shape, generator=generator).to(gradient) * 2 - 1
        total += z * product(z)
    return total / probes


def curvature(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    table: GateTable,
    batch: Batch,
    loss_fn: LossFunction,
    need: Curvature,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Diagonal over one minibatch: by group, shape (n_units,), for gates; by tensor name, its shape, for weights."""
    detached = {p: channels_first(p.detach()) for p in parameters.values()}
    first = next(iter(detached.values()))
    batch = batch.to(first.device)
    with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second one
        if need.by == "gates":
            leaves = {g: torch.ones(n, dtype=first.dtype, device=first.device).requires_grad_()
                      for g, n in table.sizes.items()}  # fmt: skip
            weights = {name: detached[p] for name, p in parameters.items()}
            for name, dim in table.parts:
                gate = table.along(leaves, (name, dim), weights[name].shape[dim], weights[name].ndim, 1.0)
                weights[name] = weights[name] * gate
            output = called(model, weights, batch)
        else:
            by_parameter = {p: w.requires_grad_() for p, w in detached.items()}
            leaves = {name: by_parameter[p] for name, p in parameters.items()}
            output = called(model, replaced(parameters, by_parameter), batch)
        unique = list(dict.fromkeys(leaves.values()))
        gradient = torch.autograd.grad(
            loss_fn(output, batch.targets), unique, create_graph=True, allow_unused=True, materialize_grads=True
        )
        flat = diagonal(torch.cat([g.flatten() for g in gradient]), unique, need.probes, generator)
    pieces = dict(zip(unique, torch.split(flat.detach(), [leaf.numel() for leaf in unique]), strict=True))
    return {name: pieces[leaf].reshape(leaf.shape).double() for name, leaf in leaves.items()}
