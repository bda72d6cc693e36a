"""One factor for each unit, multiplied into all weights that read it: at 0 the unit is removed.

The gate sits on what consumers read (the producers' last stage where no weight reads them), so it is the removal
through any activation. Norms that mix channels (layer norm) still see a closed unit's values; the really smaller
network does not. Members of a group share the gate, or they would disagree.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from amcsearch.graph import Trace
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

    def scaled(self, gates: Mapping[str, Tensor], *, straight_through: bool = False) -> dict[str, Tensor]:
        """Return the reading tensors by name, each times its units' gates, (n_units,) a group; gradients flow.

        ``straight_through`` gives the weights of a closed unit the gradient that they would have if it were open.
        """
        first = next(iter(gates.values()))
        flat = torch.cat([first.new_ones(1), *(gates[name] for name in self.counts)])
        result: dict[str, Tensor] = {}
        for (name, dim), units in self._unit_of.items():
            parameter = self._parameters[name]
            tensor = result.get(name, parameter.detach() if straight_through else parameter)
            shape = [1] * tensor.ndim
            shape[dim] = -1
            result[name] = tensor * flat[units.to(flat.device)].view(shape).to(tensor.dtype)
        if straight_through:
            return {name: t + self._parameters[name] - self._parameters[name].detach() for name, t in result.items()}
        return result

    def readers(self, group: str, chosen: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Yield (parameter, dim, positions along dim) of what reads the ``chosen`` units, a bool mask (n_units,)."""
        names = list(self.counts)
        first = 1 + sum(self.counts[name] for name in names[: names.index(group)])
        numbers = first + chosen.nonzero().flatten()
        for (name, dim), units in self._unit_of.items():
            parameter = self._parameters[name]
            positions = torch.isin(units.to(numbers.device), numbers).nonzero().flatten()
            if len(positions):
                yield parameter, dim, positions.to(parameter.device)

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
