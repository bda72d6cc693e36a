"""What the checks of the dense network run at once."""

import re

import pytest
import torch
from torch import Tensor, nn

from amcsearch.config import Config, DataConfig, DeviceConfig, ModelConfig
from amcsearch.core import Evaluation
from amcsearch.core.errors import BadInputError
from amcsearch.graph.batch import Batch, HeldBatches
from amcsearch.jobs.network_check import _calls, chance_warning, check_network, not_finite, probes_of
from amcsearch.training import CLASS_IDS
from amcsearch.training.splits import DataSplits, Held


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sizes = nn.Conv2d(1, 2, 1), []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.layer(x).mean((2, 3))


class ForOne(nn.Module):
    """Computes one image: it asks for one, reshapes to one, or looks at the first."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.head, self.how = nn.Conv2d(1, 2, 1), nn.Linear(2, 3), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "asks":
            (x,) = x
            x = x[None]
        maps = self.layer(x[:1] if self.how == "first" else x).mean((2, 3))
        return self.head(maps.view(1, 2) if self.how == "view" else maps)


def configured(name: str) -> Config:
    return Config(
        name=name,
        model=ModelConfig(factory=None),
        data=DataConfig(factory=None),
        device=DeviceConfig(batch=1),
        budget={"macs": "0.5x"},
    )


def splits_of(images: Tensor) -> DataSplits:
    held = Held(Batch.of(images, torch.zeros(len(images), dtype=torch.long)))
    return DataSplits(held, held, held, held)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("asks", "ForOne takes batches of 1 alone, of 12 it raises ValueError: too many values to unpack"),
        ("view", "ForOne takes batches of 1 alone, of 12 it raises RuntimeError: shape"),
        ("first", r"ForOne gives \(1, 3\) for a batch of 12, as for a batch of 1"),
    ],
)
def test_a_network_of_one_sample_alone_is_told_how_to_take_more(how: str, said: str) -> None:
    splits = splits_of(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    probes = probes_of(splits)
    assert probes.size == 12
    with pytest.raises(BadInputError, match=said + r".*; write its forward for any batch size: x\.flatten\(1\) for"):
        check_network(configured("one"), ForOne(how).eval(), splits, probes)


def test_an_error_that_one_sample_raises_too_stays_as_it_is() -> None:
    splits = splits_of(torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)))  # of three channels
    with pytest.raises(BadInputError, match=r"ForOne raised RuntimeError: .*to have 1 channels"):
        check_network(configured("other"), ForOne("").eval(), splits, probes_of(splits))


def test_large_images_are_checked_in_small_batches() -> None:
    """Sixteen of 128x128 at once, where the probes alone are dozens: memory is that of a batch, not of a split."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 1, 128, 128, generator=generator)
    splits = splits_of(images)
    network, probes = Counting().eval(), probes_of(splits)
    assert probes.size > 40
    check_network(configured("large"), network, splits, probes)
    assert max(network.sizes) == 16


@pytest.mark.parametrize(("size", "sizes"), [(1, [16, 16, 8]), (5, [15, 15, 10]), (24, [24, 16])])
def test_by_hand_probes_reach_the_exported_file_in_whole_calls_of_few(size: int, sizes: list[int]) -> None:
    probes = Batch.of(torch.arange(40.0)[:, None, None, None].expand(40, 1, 224, 224))
    calls = list(_calls(probes, size))
    assert [call.size for call in calls] == sizes
    assert torch.cat([call.args[0][:, 0, 0, 0] for call in calls]).tolist() == list(range(40))


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Root(nn.Module):
    """Takes a root between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(x.sqrt())


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Sequential(nn.Flatten(), Log(), nn.ReLU()), [1.0, -1.0, 2.0], "1 of 3 .* it begins in 1 \\(Log\\): guard"),
        (Log(), [-1.0, -1.0], "2 of 2 .* it begins in Log: guard"),
        (nn.Sequential(Root()), [-1.0], "1 of 1 .* the operations between the layers of 0 \\(Root\\): guard"),
        (Log(), [1.0, float("nan")], "1 of 2 .*; these inputs hold NaN or infinity themselves: mend the data"),
    ],
)
def test_where_nan_begins(model: nn.Module, inputs: list[float], words: str) -> None:
    samples = HeldBatches.of(torch.tensor(inputs)[:, None], None, 2)
    problem = not_finite(model, samples, "search")
    assert problem is not None
    assert re.match(f"NaN or infinity for {words}", problem)
    assert not_finite(model, HeldBatches.of(torch.ones(2, 1), None, 2), "search") is None


@pytest.mark.parametrize(
    ("samples", "accuracy", "words"),
    [
        # two standard errors of a guess among four classes: 2·√(¼·¾/n) is 0.87 of one sample, 0.087 of a hundred
        (
            1,
            1.0,
            "whether the dense network guesses cannot be told from so few samples: it has 100.0% right on the 1 sa",
        ),
        (
            100,
            0.26,
            "the dense network guesses: 26.0% right on the 100 samples of the search split, where one of 4 clas",
        ),
        (100, 0.5, None),
    ],
)
def test_a_guess_is_told_where_samples_are_enough(samples: int, accuracy: float, words: str | None) -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(samples, 2), torch.zeros(samples, dtype=torch.long))
    splits = DataSplits(data, data, data, data)
    said = chance_warning(nn.Linear(2, 4), splits, Evaluation(accuracy, 1.0, 0.0), CLASS_IDS)
    assert said is None if words is None else said is not None and said.startswith(words)
