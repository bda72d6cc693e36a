"""A device whose every kernel time is known, and what measuring pruned networks on it would give."""

import numpy as np

from amcsearch.core.layer import LayerKind
from amcsearch.costs.latency.cache import CacheOverflow, is_plain, weight_mib
from amcsearch.costs.latency.entry import Provenance
from amcsearch.measure.build.attribution import KernelRun
from amcsearch.measure.build.measured import MeasuredVariant

PROVENANCE = Provenance(cpu="made up", ort_version="1.0", threads=1, batch=1, nchwc_block=16, dtype="float32")


def up(width, block=16):
    return -(-width // block) * block


class SimulatedDevice:
    """10 GMAC/s in blocks of 16 outputs, half of that where widths do not divide by 4, which also costs a reorder.

    The profiler sees ``inflation`` times the truth and ``profiler_ms`` more for each node; ``noise`` is the relative
    standard deviation of a pass.
    """

    def __init__(self, overhead_ms=0.01, inflation=1.25, profiler_ms=0.002, slopes=None, noise=0.0, speed=1.0):
        self.overhead_ms, self.inflation, self.profiler_ms = overhead_ms / speed, inflation, profiler_ms
        self.overflow, self.noise, self.speed = CacheOverflow(slopes or {}), noise, speed

    def kernels(self, layer):
        """Kernel → ms; {} for a layer that is folded away."""
        positions = layer.out_size[0] * layer.out_size[1]
        depth = layer.in_channels // layer.conv_groups * layer.kernel[0] * layer.kernel[1] * positions
        if layer.kind is LayerKind.CONV and layer.in_channels % 4 == 0 == layer.out_channels % 4:
            found = {"nchwc.Conv+Relu": 2e-3 + 1e-7 * depth * up(layer.out_channels)}
        elif layer.kind is LayerKind.CONV:
            reorder = 1e-3 + 1e-6 * layer.in_channels * positions
            found = {"ReorderOutput": reorder, "ms.FusedConv+Relu": 3e-3 + 2e-7 * depth * layer.out_channels}
        elif layer.kind is LayerKind.BATCH_NORM:
            found = {}
        else:
            found = {f"{layer.kind}": 1e-3 + 1e-7 * depth * layer.out_channels}
        return {kernel: ms / self.speed for kernel, ms in found.items()}

    def truth_ms(self, layers):
        """Latency of a whole network."""
        total = sum(weight_mib(layer, 4) for layer in layers)
        plain = [any(map(is_plain, self.kernels(layer))) for layer in layers]
        streamed = sum(weight_mib(layer, 4) for layer, is_plain in zip(layers, plain, strict=True) if not is_plain)
        extra = float(self.overflow.extra_ms(np.array([total]), np.array([streamed]))[0])
        return self.overhead_ms + sum(sum(self.kernels(layer).values()) for layer in layers) + extra

    def measured(self, network, policies, rng, *, passes=3, profiled=True):
        """Variants as a kit would bring them."""
        found = []
        for policy in policies:
            layers = network.with_channels(policy).layers
            whole = self.truth_ms(layers)
            times = tuple(float(whole * (1 + self.noise * rng.normal())) for _ in range(passes))
            runs = [
                KernelRun(layer.name, kernel, self.inflation * ms + self.profiler_ms)
                for layer in layers
                for kernel, ms in self.kernels(layer).items()
            ]
            found.append(MeasuredVariant(policy, layers, times, tuple(runs) if profiled else ()))
        return found
