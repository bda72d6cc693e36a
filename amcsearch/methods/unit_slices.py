"""One number a unit, multiplied into everything that reads the unit: a gate is the removal itself where it is 0.

The gate sits on what consumers read (the producers' last stage where no weight reads them), so it is the removal
through any activation. Norms that mix channels (layer norm) still see a closed unit's values; the really smaller
network does not. Members of a group share the gate, or they would disagree.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amcsearch.graph.slices import Trace
from amcsearch.methods.reduction import Member, consumers

__all__ = ["UnitSlices"]


class UnitSlices:
    """Where the units of every group are read; ``counts`` units a group, ``sizes`` parameters that each one removes."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.counts = {group.name: group.channels // group.unit for group in trace.network.groups}
        self.sizes: dict[str, int] = {}
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._unit_of: dict[tuple[str, int], Tensor] = {}
        first = 1  # place 0 of the flat gates is the constant 1 of channels without a gate
        for name, count in self.counts.items():
            self._add(trace, name, first)
            first += count

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self._parameters.values())).device

    def scaled(self, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the reading tensors by name, each times its units' gates, (n_units,) a group; gradients flow."""
        first = next(iter(gates.values()))
        flat = torch.cat([first.new_ones(1), *(gates[name] for name in self.counts)])
        result: dict[str, Tensor] = {}
        for (name, dim), units in self._unit_of.items():
            tensor = result.get(name, self._parameters[name])
            shape = [1] * tensor.ndim
            shape[dim] = -1
            result[name] = tensor * flat[units.to(flat.device)].view(shape).to(tensor.dtype)
        return result

    def _add(self, trace: Trace, group: str, first: int) -> None:
        units = trace.units[group]
        parts = [part for part in trace.slices[group] if part.tensor in self._parameters]
        members = []
        removed = 0
        for part in parts:
            index = trace.network.layer_index[part.layer]
            members.append(Member(trace.network.layers[index], index, part.side, torch.empty(0)))
            tensor = self._parameters[part.tensor]
            removed += part.positions[units[0]].size * tensor.numel() // tensor.shape[part.dim]
        self.sizes[group] = removed
        chosen = {id(member) for member in consumers(members)}
        for part, member in zip(parts, members, strict=True):
            if id(member) not in chosen:
                continue
            key = part.tensor, part.dim
            if key not in self._unit_of:
                self._unit_of[key] = torch.zeros(self._parameters[part.tensor].shape[part.dim], dtype=torch.long)
            for number, channels in enumerate(units):
                self._unit_of[key][torch.from_numpy(part.positions[channels].ravel())] = first + number
