"""Does removing channels save more energy than zeroing as many single weights? By storage format and arithmetic.

    OMP_NUM_THREADS=1 python benchmarks/energy/structured_against_unstructured.py

Structured: every group keeps the same share of its channels, as many as leave the weights asked for. Unstructured:
every convolution and linear layer keeps the same share of its weights, at the structured network's sparsity to the last
weight; dense arithmetic multiplies zeros too, the other skips them. No accuracy in sight: at equal sparsity single
weights lose less of it, so the last lines say how sparse the unstructured network must be to need as little energy.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from amcsearch.config.devices import read_device
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.compute import params
from amcsearch.costs.device import DeviceProfile
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.energy.storage import DENSE, Sparsity, StorageFormat
from amcsearch.graph.tracing.trace import trace
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20

DEVICES = Path(__file__).parents[2] / "configs" / "devices"
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
PRUNED_KINDS = (LayerKind.CONV, LayerKind.LINEAR)
STEPS = 9  # of the bisection for equal energy: to a fifth of a per cent


def linear_layers() -> NetworkSpec:
    """The classifier of AlexNet (Krizhevsky et al., 2012): 9216, 4096, 4096, 1000."""
    widths = (9216, 4096, 4096, 1000)
    layers = tuple(LayerSpec(f"fc{n}", LayerKind.LINEAR, a, b) for n, (a, b) in enumerate(pairwise(widths), 1))
    groups = tuple(
        ChannelGroup(a.name, a.out_channels, (Coupling(a.name, Side.OUT, 1), Coupling(b.name, Side.IN, 1)), 1)
        for a, b in pairwise(layers)
    )
    return NetworkSpec(layers, groups)


def networks() -> dict[str, NetworkSpec]:
    """Shapes of the three networks."""
    image = torch.zeros(1, 1, 32, 32)
    found = {"ResNet-20": resnet20(), "MobileNetV2-style": mobilenetv2()}
    traced = {name: trace(model.eval(), image, verify=False).network for name, model in found.items()}
    return {**traced, "AlexNet's linear layers": linear_layers()}


def weights(network: NetworkSpec) -> int:
    """Weights that either kind of pruning counts."""
    return sum(params(layer) for layer in network.layers if layer.kind in PRUNED_KINDS)


def narrowed(network: NetworkSpec, sparsity: float) -> NetworkSpec:
    """The network with one share of each group's channels, nearest to the sparsity."""

    def at(share: float) -> NetworkSpec:
        kept = {g.name: g.unit * max(1, round(share * g.channels / g.unit)) for g in network.groups}
        return network.with_channels(PruningPolicy(kept))

    shares = np.linspace(0.01, 1.0, 400)
    gaps = [abs(weights(at(share)) / weights(network) - (1 - sparsity)) for share in shares]
    return at(float(shares[int(np.argmin(gaps))]))


@dataclass(frozen=True)
class Priced:
    """A device with or without arithmetic that skips zero weights; energies of networks on it."""

    profile: DeviceProfile

    def energy(self, network: NetworkSpec, sparsity: Sparsity = DENSE) -> float:
        """Energy in mJ with every convolution and linear layer this sparse."""
        return sum(
            _layer_mj(self.profile.name, self.profile.skips_zero_weights, replace(layer, name=""), chosen)
            for layer in network.layers
            for chosen in [sparsity if layer.kind in PRUNED_KINDS else DENSE]
        )

    def sparsity_for(self, network: NetworkSpec, form: StorageFormat, energy: float) -> float | None:
        """How sparse single weights must be for this energy, None where nothing suffices."""
        low, high = 0.0, 1.0 - 1e-6
        if self.energy(network, Sparsity(1.0 - high, weight_format=form)) > energy:
            return None
        for _ in range(STEPS):
            middle = (low + high) / 2
            dear = self.energy(network, Sparsity(1.0 - middle, weight_format=form)) > energy
            low, high = (middle, high) if dear else (low, middle)
        return high


@cache
def _layer_mj(device: str, skips: bool, layer: LayerSpec, sparsity: Sparsity) -> float:
    profile = replace(read_device(DEVICES / f"{device}.yaml"), skips_zero_weights=skips)
    return EnergyModel(profile).estimate(layer, sparsity).total_mj


def main() -> None:
    """Print energies at equal sparsity, and the sparsities of equal energy."""
    shapes = networks()
    for device in ("eyeriss_relative", "x86_server"):
        profile = read_device(DEVICES / f"{device}.yaml")
        plain, skipping = (Priced(replace(profile, skips_zero_weights=skips)) for skips in (False, True))
        for name, network in shapes.items():
            dense = plain.energy(network)
            print(f"\n{device}, {name}: dense {dense:.4g} mJ, {weights(network):,} weights; per cent of dense energy")
            forms = " ".join(f"{form.value:>10}" for form in StorageFormat)
            print(f"{'sparsity':>9} {'structured':>11} | {forms} | {forms}, zeros skipped")
            for asked in SPARSITIES:
                small = narrowed(network, asked)
                kept = weights(small) / weights(network)
                row = [f"{100 * (1 - kept):8.1f}%", f"{100 * plain.energy(small) / dense:11.1f}"]
                for one in (plain, skipping):
                    shares = [one.energy(network, Sparsity(kept, weight_format=form)) / dense for form in StorageFormat]
                    row += ["|", *(f"{100 * share:10.1f}" for share in shares)]
                print(*row)
            for asked in (0.5, 0.8):
                energy = plain.energy(narrowed(network, asked))
                for words, one in (("all", plain), ("nonzero", skipping)):
                    found = [one.sparsity_for(network, form, energy) for form in StorageFormat]
                    cells = " ".join(f"{'never' if x is None else f'{100 * x:.1f}%':>10}" for x in found)
                    print(f"as structured {asked:.0%}, multiplying {words:8} {cells}")


if __name__ == "__main__":
    main()
