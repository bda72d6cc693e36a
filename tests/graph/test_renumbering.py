"""The trace of a cut network, counted anew: what tracing it finds, and good for the next cut."""

import numpy as np
import torch
from torch import nn

from amcsearch.graph.masks import masked
from amcsearch.graph.outputs import first_tensor
from amcsearch.graph.removal import remove, renumbered
from amcsearch.graph.tracing.trace import trace


def some_kept(found, seed, least=1):
    """A random choice of at least ``least`` units of every group that has them."""
    rng, kept = np.random.default_rng(seed), {}
    for name, units in found.units.items():
        n_keep = int(rng.integers(min(least, len(units)), len(units) + 1))
        kept[name] = np.sort(units[rng.permutation(len(units))[:n_keep]].ravel())
    return kept


def as_values(found):
    """What can be compared: arrays as lists."""
    return (
        [(group.name, group.channels, group.unit, group.couplings) for group in found.network.groups],
        found.network.layers,
        {name: units.tolist() for name, units in found.units.items()},
        {n: [(p.tensor, p.dim, p.positions.tolist(), p.side, p.layer) for p in s] for n, s in found.slices.items()},
        {n: [(p.module, p.width, p.positions.tolist()) for p in s] for n, s in found.norms.items()},
        set(found.attributes),
    )


def test_it_is_what_tracing_the_smaller_network_finds(traced):
    kept = some_kept(traced.trace, 5, least=2)
    small = remove(traced.model, traced.trace, kept)
    again = trace(small, traced.example, verify=False)
    offered = {group.name for group in traced.trace.network.groups}
    again = again.without({group.name: "" for group in again.network.groups if group.name not in offered})
    assert as_values(renumbered(traced.trace, kept)) == as_values(again)


def test_a_second_cut_computes_what_its_masked_network_does(traced):
    first = some_kept(traced.trace, 7)
    small, found = remove(traced.model, traced.trace, first), renumbered(traced.trace, first)
    second = some_kept(found, 8)
    with torch.no_grad():
        with masked(small, found, second):
            expected = first_tensor(small(traced.example))
        smaller = first_tensor(remove(small, found, second)(traced.example))
    assert float((smaller - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_positions_close_up_by_hand():
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    found = renumbered(trace(model, torch.ones(1, 2)), {"0": np.array([1, 4])})
    (group,) = found.network.groups
    assert (group.name, group.channels) == ("0", 2)
    assert found.units["0"].tolist() == [[0], [1]]
    assert all(part.positions.tolist() == [[0], [1]] for part in found.slices["0"])


def test_a_group_of_a_single_unit_stays():
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    kept = {"0": np.array([3])}
    found = trace(model, torch.ones(1, 2))
    assert not trace(remove(model, found, kept), torch.ones(1, 2)).network.groups
    assert [group.channels for group in renumbered(found, kept).network.groups] == [1]
