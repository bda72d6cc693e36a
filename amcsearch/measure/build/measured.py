"""A pruned network as a device ran it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from amcsearch.core import LayerSpec, PruningPolicy

__all__ = ["KernelRun", "MeasuredVariant"]


@dataclass(frozen=True, slots=True)
class KernelRun:
    """One executed node of the optimised graph: its layer, its kernel, and its time as the profiler saw it, in ms."""

    layer: str
    kernel: str
    profiled_ms: float


@dataclass(frozen=True)
class MeasuredVariant:
    """One pruned network: its layers, its latency in independent passes over all variants (ms), and its profile.

    ``passes_ms`` is empty where only the graph was read, ``kernels`` where the network was not profiled.
    """

    policy: PruningPolicy
    layers: tuple[LayerSpec, ...]
    passes_ms: tuple[float, ...]
    kernels: tuple[KernelRun, ...]

    @property
    def latency_ms(self) -> float:
        """Median of the passes: one that was disturbed throughout does not count."""
        return float(np.median(self.passes_ms))

    @cached_property
    def kernels_by_layer(self) -> Mapping[str, Mapping[str, Sequence[int]]]:
        """Layer name → kernel → positions in ``kernels``."""
        found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for position, run in enumerate(self.kernels):
            found[run.layer][run.kernel].append(position)
        return found
