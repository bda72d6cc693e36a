"""How long pricing 10⁵ policies of ResNet-50 takes with the energy model: the first batch, and the next.

    OMP_NUM_THREADS=1 python benchmarks/energy/pricing_resnet50.py

Policies are drawn at random on channel grids of 16 and 8, and of 1: any width. "first" includes searching order and
tiling for every shape and memory that occurs; "next" is another batch of the same network. CPU seconds.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amcsearch.config.devices import read_device
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.grid import CostGrid
from amcsearch.graph.tracing.trace import trace

DEVICES = Path(__file__).parents[2] / "configs" / "devices"
POLICIES = 100_000


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut (He et al., 2016, arXiv 1512.03385)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        straight = stride == 1 and channels == 4 * width
        projection = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.shortcut = nn.Identity() if straight else projection

    def forward(self, x: Tensor) -> Tensor:
        """Add the body to the shortcut."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50 for 224x224 images and 1000 classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            width = 64 << stage
            layers.append(Bottleneck(channels, width, 2 if stage and block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def main() -> None:
    """Print seconds by device and channel grid."""
    torch.manual_seed(0)
    network = trace(resnet50().eval(), torch.zeros(1, 3, 224, 224), verify=False).network
    rng = np.random.default_rng(0)
    print(
        f"{POLICIES:,} policies, {len(network.layers)} layers, {len(network.groups)} groups; MACs, parameters, energy"
    )
    for device in ("eyeriss_relative", "x86_server"):
        for multiple in (16, 8, 1):
            grid = CostGrid(network, [Macs(), Params(), EnergyModel(read_device(DEVICES / f"{device}.yaml"))])
            seconds = []
            for _ in range(2):
                kept = np.stack(
                    [
                        (step := max(g.unit, multiple)) * rng.integers(1, g.channels // step + 1, POLICIES)
                        for g in network.groups
                    ],
                    axis=1,
                )
                start = time.process_time()
                grid.price(kept)
                seconds.append(time.process_time() - start)
            print(f"{device:18} widths at multiples of {multiple:2}: first {seconds[0]:.2f} s, next {seconds[1]:.2f} s")


if __name__ == "__main__":
    main()
