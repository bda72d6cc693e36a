"""Live tensors: the trace predicts of any policy what a recorder sees as torch runs the smaller network."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from amcsearch.core import BadInputError, NetworkSpec, PruningPolicy, Stored
from amcsearch.costs import CostGrid, PeakMemory
from amcsearch.graph import remove, trace
from amcsearch.graph.outputs import tensors_in
from amcsearch.training.models import mobilenetv2, resnet20, vgg, vit


class LiveRecorder(TorchDispatchMode):
    """Every operation of a run: what it reads, what it writes, and how large that is. Views lie in their source."""

    def __init__(self, model, x):
        super().__init__()
        self.constants = {self.key(t) for t in (*model.parameters(), *model.buffers())}
        self.held, self.version, self.bytes, self.log = [], {}, {}, []
        self.wrote("input", [], [x])

    @staticmethod
    def key(tensor):
        return tensor.untyped_storage()._cdata

    def wrote(self, name, reads, tensors):
        names = []
        for tensor in tensors:
            self.held.append(tensor.untyped_storage())
            self.version[self.key(tensor)] = self.version.get(self.key(tensor), 0) + 1
            names.append((self.key(tensor), self.version[self.key(tensor)]))
            self.bytes[names[-1]] = tensor.numel() * tensor.element_size()
        self.log.append((name, reads, names))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        operands = list(tensors_in((*args, *(kwargs or {}).values())))
        reads = [(self.key(t), self.version[self.key(t)]) for t in operands if self.key(t) in self.version]
        known = {self.key(t) for t in operands}
        results = [t for t in tensors_in([out]) if t.numel() and (self.key(t) not in known or func._schema.is_mutable)]
        if reads and results:
            self.wrote(func._overloadpacket.__name__, reads, results)
        return out

    def peak(self, output):
        """The largest sum over moments; a batch norm behind a convolution that it alone reads is folded into it."""
        reads = [r for _, operands, _ in self.log for r in operands]
        maker = {w: i for i, (_, _, written) in enumerate(self.log) for w in written}
        log = [list(entry) for entry in self.log]
        for entry in log:
            source = log[maker[entry[1][0]]] if entry[1] else None
            if "batch_norm" in entry[0] and source[0] == "convolution" and reads.count(entry[1][0]) == 1:
                source[2], entry[1], entry[2] = entry[2], [], []
        moments = [(r, w) for _, r, w in log if w][1:]
        first = {w: i for i, (_, written) in enumerate(moments) for w in written}
        last = {r: i for i, (read, _) in enumerate(moments) for r in read}
        last[self.key(output), self.version[self.key(output)]] = len(moments) - 1
        live = np.zeros(len(moments))
        for tensor, until in last.items():
            live[first.get(tensor, 0) : until + 1] += self.bytes[tensor]
        return float(live.max())


class Rejoined(nn.Module):
    """A concatenation, an activation in place, a sum of three, and a map that nothing reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.c, self.norm, self.d = nn.Conv2d(10, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        y = self.c(torch.cat([a, b], 1))
        y = nn.functional.relu(self.norm(y), inplace=True)
        self.d(y)
        y = nn.functional.max_pool2d(y + self.d(y) + y.mean((2, 3), keepdim=True), 2)
        return self.head(y.flatten(2).transpose(1, 2).mean(1))


NETWORKS = {
    "resnet20": (lambda: resnet20(), (1, 1, 16, 16)),
    "mobilenetv2": (lambda: mobilenetv2(), (1, 1, 16, 16)),
    "vgg": (lambda: vgg(width=4, input_size=16), (1, 1, 16, 16)),
    "vit": (lambda: vit(image_size=16, depth=2), (1, 1, 16, 16)),
    "rejoined": (Rejoined, (1, 3, 4, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_of_a_policy_is_that_of_the_smaller_network_as_torch_runs_it(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x, rng = make().eval(), torch.randn(shape), np.random.default_rng(0)
    traced = trace(model, x)
    network = traced.network
    grid = CostGrid(network, [PeakMemory(network)])
    peaks = set()
    for draw in range(4):
        kept = {}
        for group in network.groups:
            units = traced.units[group.name]
            count = len(units) if draw == 0 else int(rng.integers(1, len(units) + 1))
            kept[group.name] = np.sort(units[rng.permutation(len(units))[:count]].ravel())
        small = remove(model, traced, kept).eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), LiveRecorder(small, x) as recorder:
            output = small(x)
        predicted = grid.cost(PruningPolicy({key: len(index) for key, index in kept.items()}))["peak_memory_bytes"]
        if name == "rejoined":  # torch runs `self.d(y)`, whose result nothing reads; the file does not
            recorder.log = [entry for entry in recorder.log if entry[2] and _is_read(recorder, entry, output)]
        assert predicted == recorder.peak(output)
        peaks.add(predicted)
    assert len(peaks) > 1


def _is_read(recorder, entry, output):
    return any(w in r for _, r, _ in recorder.log for w in entry[2]) or entry is recorder.log[-1]


def test_a_peak_without_an_order_of_execution_is_refused(resnet_shapes_only):
    with pytest.raises(BadInputError, match="order of execution is not known; trace the module"):
        PeakMemory(resnet_shapes_only)


@pytest.fixture
def resnet_shapes_only():
    network = trace(resnet20(), torch.zeros(1, 1, 16, 16), verify=False).network
    return NetworkSpec(network.layers, network.groups)


def test_the_batch_multiplies_and_int8_maps_take_a_byte():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    network = trace(model.eval(), torch.zeros(1, 1, 8, 8)).network
    dense = np.array([[4]])
    # two maps of 4 x 64, in float32 and int8; the input and the output stay float32
    assert CostGrid(network, [PeakMemory(network)]).price(dense)["peak_memory_bytes"] == [2 * 256 * 4]
    assert CostGrid(network, [PeakMemory(network, batch=3)]).price(dense)["peak_memory_bytes"] == [3 * 2 * 256 * 4]
    assert CostGrid(network, [PeakMemory(network, "int8")]).price(dense)["peak_memory_bytes"] == [256 + 128 * 4]


def test_moments_are_named_by_their_place():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    network = trace(model.eval(), torch.zeros(1, 1, 8, 8)).network
    assert network.execution.moments == ("0.convolution", "2.relu")
    assert [layer.stored for layer in network.layers] == [Stored.ALL, Stored.NOTHING]
