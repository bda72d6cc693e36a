"""What the checks of the dense network run at once."""

import torch
from torch import Tensor, nn

from amcsearch.config import Config, DataConfig, DeviceConfig, ModelConfig
from amcsearch.graph.batch import Batch
from amcsearch.jobs.network_check import check_network, probes_of
from amcsearch.training.splits import DataSplits, Held


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sizes = nn.Conv2d(1, 2, 1), []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.layer(x).mean((2, 3))


def test_large_images_are_checked_in_small_batches() -> None:
    """Sixteen of 128x128 at once, where the probes alone are dozens: memory is that of a batch, not of a split."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 1, 128, 128, generator=generator)
    held = Held(Batch.of(images, torch.zeros(40, dtype=torch.long)))
    splits = DataSplits(held, held, held, held)
    network, probes = Counting().eval(), probes_of(splits)
    assert probes.size > 40
    config = Config(
        name="large",
        model=ModelConfig(factory=None),
        data=DataConfig(factory=None),
        device=DeviceConfig(batch=1),
        budget={"macs": "0.5x"},
    )
    check_network(config, network, splits, probes)
    assert max(network.sizes) == 16
