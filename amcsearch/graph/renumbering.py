"""The trace of what removal left: the same groups, with channels and positions counted anew.

Tracing the smaller module would find the same, but for one exception: channels that can only leave all together are no
group, so a group cut to its last unit would be lost, and with it the place that policies have for it.
"""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PruningPolicy
from amcsearch.graph.removal import leaving, removed_positions
from amcsearch.graph.slices import Kept, NormSlice, TensorSlice, Trace, check_kept

__all__ = ["renumbered"]

Indices = NDArray[np.int64]


def renumbered(trace: Trace, kept: Kept) -> Trace:
    """Return the trace of ``remove(model, trace, kept)``, its groups named and ordered as in ``trace``.

    Raises:
        BadInputError: kept channels that do not fit the trace.
    """
    removed = defaultdict(_nothing, check_kept(trace, kept))
    left = {name: np.setdiff1d(units, removed[name]) for name, units in trace.units.items()}
    in_tensors = defaultdict(_nothing, removed_positions(trace, removed))
    in_norms = defaultdict(_nothing, leaving(trace.norms, removed, lambda part: part.module))

    def in_tensor(part: TensorSlice, group: str) -> TensorSlice:
        positions = _closed_up(part.positions[left[group]], in_tensors[part.tensor, part.dim])
        return TensorSlice(part.tensor, part.dim, positions, part.side, part.layer)

    def in_norm(part: NormSlice, group: str) -> NormSlice:
        gone = in_norms[part.module]
        return NormSlice(part.module, part.width - len(gone), _closed_up(part.positions[left[group]], gone))

    def unit_rows(units: Indices, group: str) -> Indices:
        return _closed_up(units[np.isin(units[:, 0], left[group])], removed[group])

    return Trace(
        trace.network.with_channels(PruningPolicy({name: len(channels) for name, channels in left.items()})),
        {name: tuple(in_tensor(part, name) for part in parts) for name, parts in trace.slices.items()},
        {name: unit_rows(units, name) for name, units in trace.units.items()},
        trace.skipped,
        {name: tuple(in_norm(part, name) for part in parts) for name, parts in trace.norms.items()},
        trace.attributes,
    )


def _nothing() -> Indices:
    return np.zeros(0, dtype=np.int64)


def _closed_up(positions: Indices, gone: Indices) -> Indices:
    """Positions, any shape, after those of ``gone`` (sorted, none of them among ``positions``) have left."""
    return positions - np.searchsorted(gone, positions)
