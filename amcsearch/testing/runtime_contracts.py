"""What every runtime promises, on small networks of one and of several inputs and outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch
from amcsearch.runtime import FileModule, Runtime, arrays_of, compare, differences, measure_many, signature_of

__all__ = ["RuntimeContract"]

_SAMPLES: Final = 2  # in a call of the files


class _Two(nn.Module):
    """Two inputs, one of them with a sample along its first axis only, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.of_first, self.of_second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.relu(self.of_first(first) + self.of_second(second).unsqueeze(1))
        return joined.mean(1), joined.sum(2)


class RuntimeContract:
    """What every ``runtime.Runtime`` promises."""

    def make(self) -> Runtime:
        """Return the runtime that is tested, on one thread."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], Runtime]:
        """Give the tests ``make``."""
        return self.make

    @pytest.fixture
    def network(self) -> nn.Module:
        """Give the tests a convolutional network."""
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        return nn.Sequential(*layers).eval()

    def test_a_file_gives_what_the_network_gives(self, maker: Callable[[], Runtime], network: nn.Module) -> None:
        """Any number of samples goes through a file of another batch, read from memory or from the disk."""
        runtime, x = maker(), torch.randn(2 * _SAMPLES + 1, 3, 8, 8)
        content = runtime.exported(network, x[:_SAMPLES])
        file = FileModule(runtime.load(content), signature_of(network, x[:_SAMPLES]))
        assert compare(network, file, x).problem is None

    def test_weights_may_lie_in_memory_channels_last(self, maker: Callable[[], Runtime], network: nn.Module) -> None:
        """As a refit after pruning may leave them."""
        runtime, x = maker(), torch.randn(_SAMPLES, 3, 8, 8)
        for weight in network.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        assert compare(network, FileModule(runtime.load(runtime.exported(network, x))), x).problem is None

    def test_a_file_is_read_from_the_disk(
        self, maker: Callable[[], Runtime], network: nn.Module, tmp_path: Path
    ) -> None:
        """Its name ends in ``suffix``."""
        runtime, x = maker(), torch.randn(_SAMPLES, 3, 8, 8)
        path = tmp_path / f"network{runtime.suffix}"
        path.write_bytes(runtime.exported(network, x))
        assert runtime.suffix.startswith(".")
        assert compare(network, FileModule(runtime.load(path)), x).problem is None

    def test_all_inputs_and_outputs_are_there_in_order(self, maker: Callable[[], Runtime]) -> None:
        """Names and shapes of the inputs too, with the number of samples first."""
        torch.manual_seed(0)
        runtime, network = maker(), _Two().eval()
        batch = Batch((torch.randn(_SAMPLES, 6, 3), torch.randn(_SAMPLES, 2)), {}, size=_SAMPLES)
        loaded = runtime.load(runtime.exported(network, batch))
        assert [port.shape for port in loaded.inputs] == [(_SAMPLES, 6, 3), (_SAMPLES, 2)]
        file = FileModule(loaded, signature_of(network, batch))
        assert compare(network, file, [batch], labels=False).problem is None

    def test_export_leaves_the_network_as_it_is(self, maker: Callable[[], Runtime], network: nn.Module) -> None:
        """Its weights and its mode."""
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network.train()
        maker().exported(network, torch.randn(_SAMPLES, 3, 8, 8))
        assert network.training
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_later_calls_do_not_write_into_earlier_outputs(
        self, maker: Callable[[], Runtime], network: nn.Module
    ) -> None:
        """Each call has outputs of its own."""
        runtime, x = maker(), torch.randn(_SAMPLES, 3, 8, 8)
        loaded = runtime.load(runtime.exported(network, x))
        (first,) = loaded.run(arrays_of(x))
        before = first.copy()
        loaded.run(arrays_of(x + 1.0))
        assert (first == before).all()

    def test_networks_are_timed_beside_each_other(self, maker: Callable[[], Runtime], network: nn.Module) -> None:
        """In the same process, several at once."""
        runtime, x = maker(), torch.randn(_SAMPLES, 3, 8, 8)
        content = runtime.exported(network, x)
        (latency,) = measure_many(content, [content], arrays_of(x), runtime=runtime, rounds=2, min_ms=0.01)
        assert latency.dense_ms > 0.0
        assert latency.pruned_ms > 0.0

    def test_other_inputs_are_refused(self, maker: Callable[[], Runtime], network: nn.Module) -> None:
        """Another shape, and another number of inputs."""
        runtime, x = maker(), torch.randn(_SAMPLES, 3, 8, 8)
        loaded = runtime.load(runtime.exported(network, x))
        for wrong in ([x[:, :2]], [x, x]):
            with pytest.raises(BadInputError):
                FileModule(loaded)(*wrong)
            with pytest.raises(BadInputError):
                loaded.bound_call([array for tensor in wrong for array in arrays_of(tensor)])

    def test_what_is_no_file_is_refused(self, maker: Callable[[], Runtime], tmp_path: Path) -> None:
        """Damaged or absent."""
        runtime = maker()
        for wrong in (b"no file of a network", tmp_path / f"absent{runtime.suffix}"):
            with pytest.raises(BadInputError):
                runtime.load(wrong)

    def test_provenance_names_the_runtime_and_the_setting(self, maker: Callable[[], Runtime]) -> None:
        """Another runtime of the same setting has the same; it can be written as JSON."""
        runtime = maker()
        where = runtime.provenance(batch=3)
        assert (where.runtime, where.threads, where.batch) == (runtime.name, runtime.threads, 3)
        assert where.dtype == "float32" in runtime.dtypes
        assert where.provider
        assert differences(where, maker().provenance(batch=3)) == []
        assert differences(where, maker().provenance(batch=4))
        json.dumps(where.as_mapping())

    def test_no_thread_is_refused(self, maker: Callable[[], Runtime]) -> None:
        """One is the least."""
        with pytest.raises(BadInputError):
            type(maker())(threads=0)
