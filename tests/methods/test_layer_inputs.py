"""The rows a layer multiplies its weight with, and their moments, against torch's own layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph import HeldBatches, as_batch
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods import layer_inputs, products
from amcsearch.methods.layer_inputs import gather_inputs, read_calls, unread_group, why_too_large
from amcsearch.methods.patches import channel_means, patches, tap_major_rows, weight_matrix
from amcsearch.methods.selector import Calibration, problem_of

LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 6)),
    "tokens": (nn.Linear(6, 4), (3, 5, 6)),
    "3x3": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(2, 1)), (2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 4, 6, 6)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 6)),
    "circular": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (2, 4, 9)),
    "1d": (nn.Conv1d(4, 6, 3, stride=2, dilation=2), (2, 4, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_weight_are_the_layers_output(name: str) -> None:
    layer, shape = LAYERS[name]
    layer = layer.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = patches(layer, x) @ weight_matrix(layer).mT  # (groups, rows, O / groups)
    expected = layer(x) - layer.bias.reshape(
        -1, *[1] * (x.ndim - 2) if "linear" not in name and "tok" not in name else []
    )
    channels_last = expected if isinstance(layer, nn.Linear) else expected.movedim(1, -1)
    torch.testing.assert_close(product.permute(1, 0, 2).flatten(1), channels_last.reshape(len(product[0]), -1))


def test_a_patch_is_channel_major() -> None:
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert patches(nn.Conv2d(2, 1, 2), x).tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7]]]


def test_drawn_positions_are_rows_of_all() -> None:
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    every = {tuple(row) for row in patches(layer, x)[0].tolist()}
    some = patches(layer, x, 5, torch.Generator().manual_seed(1))
    assert some.shape == (1, 10, 18)
    assert {tuple(row) for row in some[0].tolist()} < every


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm2 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c, self.head = nn.Linear(6, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = F.relu(self.norm2(self.b(x)))
        return self.head(F.relu(self.c(x.mean((2, 3)))))


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Small().double().eval(), torch.randn(7, 1, 5, 5, dtype=torch.float64)


def test_moments_are_those_of_all_rows_at_once_whatever_the_batches() -> None:
    model, x = network()
    found = trace(model, x[:1])
    with torch.no_grad():
        first = F.relu(model.norm(model.a(x)))
        rows = patches(model.b, first)[0]
    for batch_size in (7, 3, 1):
        seen = gather_inputs(model, found, HeldBatches.of(x, None, batch_size), positions=None)
        assert list(seen) == ["b", "c", "head"]
        inputs = seen["b"]
        assert (inputs.rows, inputs.taps) == (7 * 25, 9)
        torch.testing.assert_close(inputs.mean[0], rows.mean(0))
        torch.testing.assert_close(inputs.gram[0], torch.cov(rows.T, correction=0))


def test_the_constant_is_a_bias_or_the_batch_norm_that_reads_the_output_or_nothing() -> None:
    model, x = network()
    seen = gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 4))
    assert {name: (s.bias, s.norm) for name, s in seen.items()} == {
        "b": (None, "norm2"), "c": (None, None), "head": ("head.bias", None),
    }  # fmt: skip
    with torch.no_grad():
        pooled = F.relu(model.norm2(model.b(F.relu(model.norm(model.a(x)))))).mean((2, 3))
    torch.testing.assert_close(seen["c"].gram[0], pooled.T @ pooled / 7)  # no constant: about 0
    assert not seen["c"].mean.any()


def test_moments_by_class() -> None:
    model, x = network()
    labels = torch.tensor([0, 2, 2, 0, 2, 0, 0])
    classes = gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, labels, 3), labels=True)["head"].classes
    assert classes is not None
    with torch.no_grad():
        features = F.relu(model.c(F.relu(model.norm2(model.b(F.relu(model.norm(model.a(x)))))).mean((2, 3))))
    assert classes.counts.tolist() == [4, 0, 3]
    torch.testing.assert_close(classes.sums, torch.stack([features[labels == k].sum(0) for k in range(3)]))
    torch.testing.assert_close(classes.squares, features.square().sum(0))


def test_the_model_is_left_as_found() -> None:
    model, x = network()
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 4))
    assert [m.training for m in model.children()] == [True, False, True, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_readers_of_other_kinds_are_named(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)
    ).eval()
    x = torch.randn(3, 1, 6, 6)
    with caplog.at_level("INFO"):
        assert list(gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 2))) == ["4"]
    assert "not refitted: 2 (ConvTranspose2d)" in caplog.text


def test_what_reads_a_group_that_no_selector_can_judge_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3)).eval()
    x = torch.randn(3, 1, 6, 6)
    calibration = Calibration(model, trace(model, x[:1]), HeldBatches.of(x, x, 2), F.mse_loss)
    with pytest.raises(BadInputError, match=r"reads group '0' \(read by 2: ConvTranspose2d\), so no selector can"):
        problem_of(calibration)


class Routed(nn.Module):
    """Calls a layer by keyword, and an expert with no token at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.idle = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        none = x[torch.zeros(len(x), dtype=torch.bool)]
        return self.b(input=x) + self.idle(none).sum()


def test_inputs_by_keyword_count_and_empty_ones_do_not() -> None:
    torch.manual_seed(0)
    model, x = Routed().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    readers = {"b": model.b, "idle": model.idle}
    with torch.no_grad():
        calls = list[tuple[str, Tensor]]()
        read_calls(model, readers, as_batch(x), lambda layer, read: calls.append((layer, read.clone())))
        assert [layer for layer, _ in calls] == ["b"]
        torch.testing.assert_close(calls[0][1], F.relu(model.a(x)))


def test_too_much_memory_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network()
    found = trace(model, x[:1])
    model.forward = None  # type: ignore[assignment]
    monkeypatch.setattr(layer_inputs, "MEMORY_BYTES", 8 * (36**2 + 6**2 + 5**2) - 1)
    with pytest.raises(BadInputError, match=r"Gram matrices would take .* largest is that of b"):
        gather_inputs(model, found, HeldBatches.of(x, None, 4))


class Branches(nn.Module):
    """Readers of every kind in single precision; ``left`` and ``right`` read one tensor, which changes afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 40, 3, padding=1, stride=2)
        self.c = nn.Conv2d(40, 12, (3, 2), groups=4, padding=(1, 0), dilation=(2, 1), bias=False)
        self.left, self.right, self.plain = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(12, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))
        tokens = x.flatten(2).mT.contiguous()
        mixed = self.left(tokens) * self.right(tokens).sigmoid() + self.plain(tokens)
        tokens += 1.0
        return self.head(mixed.mean(1))


def plain_moments(layer: nn.Module, calls: list[Tensor], is_centred: bool) -> tuple[Tensor, Tensor]:
    rows = torch.cat([patches(layer, x.double()) for x in calls], 1)
    mean = rows.mean(1) if is_centred else torch.zeros_like(rows[:, 0])
    return mean, (rows - mean[:, None]).mT @ (rows - mean[:, None]) / rows.shape[1]


@pytest.mark.parametrize("rows", [20, 2048])
@pytest.mark.parametrize("width", [5, 128])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_single_precision_gives_the_moments_of_double_precision(
    monkeypatch: pytest.MonkeyPatch, offset: float, width: int, rows: int
) -> None:
    """However far the mean is from 0, however few rows and columns are multiplied at once."""
    torch.manual_seed(0)
    model = Branches().eval()
    model.norm.bias.data += offset
    x = torch.randn(9, 2, 12, 9)
    calls: dict[str, list[Tensor]] = {}
    monkeypatch.setattr(products, "WIDTH", width)
    monkeypatch.setattr(products, "ROWS", rows)
    gathered = gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 4), positions=None)
    for layer in gathered:
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, layer=layer: calls.setdefault(layer, []).append(args[0].clone())
        )
    for batch in x.split(4):
        model(batch.contiguous(memory_format=torch.channels_last))  # as it is gathered
    assert list(gathered) == ["b", "c", "left", "right", "plain", "head"]
    for layer, inputs in gathered.items():
        mean, gram = plain_moments(model.get_submodule(layer), calls[layer], layer not in ("c", "plain"))
        scale = float(gram.diagonal(dim1=1, dim2=2).mean())
        torch.testing.assert_close(inputs.mean, mean, rtol=1e-6, atol=1e-6 * scale**0.5)
        torch.testing.assert_close(inputs.gram, gram, rtol=0.0, atol=2e-6 * scale)
        assert torch.equal(inputs.gram, inputs.gram.mT)


SHIFTED = {
    "padded": (nn.Conv2d(8, 4, 3, padding=1), (5, 8, 6, 7)),
    "oblong": (nn.Conv2d(8, 4, (3, 5), padding="same", padding_mode="reflect"), (5, 8, 6, 7)),
    "even": (nn.Conv2d(8, 4, 2), (5, 8, 6, 7)),
    "wider than the map": (nn.Conv2d(8, 4, 3, padding=2), (5, 8, 1, 2)),
    "a row": (nn.Conv2d(8, 4, (1, 4), padding=(0, 1)), (5, 8, 3, 9)),
}


@pytest.mark.parametrize("rows", [1, 2048])
@pytest.mark.parametrize("is_centred", [True, False])
@pytest.mark.parametrize("name", SHIFTED)
def test_a_map_moved_over_itself_gives_the_products_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, name: str, is_centred: bool, rows: int
) -> None:
    """However few samples are multiplied at once."""
    layer, shape = SHIFTED[name]
    monkeypatch.setattr(products, "ROWS", rows)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3.0
    shift = channel_means(layer, x) if is_centred else None
    moved = products.Products.of_shifts(layer, x, shift)
    cut = products.Products.of(tap_major_rows(layer, x, shift=shift))
    assert moved.rows == cut.rows
    moments = []
    for each in (moved, cut):
        running = products.RunningMoments(is_centred, shift)
        running.add(each)
        moments.append(running.finish(layer.weight[0, 0].numel(), 0.0))
    torch.testing.assert_close(moments[0], moments[1])


@pytest.mark.parametrize(
    ("layer", "side", "samples", "cheaper"),
    [
        (nn.Conv2d(8, 4, 3, padding=1), 8, 128, True),  # 1,018 products of a channel pair for 64 * 45
        (nn.Conv2d(8, 4, 3, padding=1), 32, 128, False),  # 14,026 for 128 * 45
        (nn.Conv2d(512, 4, 3, padding=1), 7, 16, False),  # 801 and 276 results to write for 49 * 45
        (nn.Conv2d(8, 4, 1), 8, 128, False),
        (nn.Conv2d(8, 4, 3, padding=1, stride=2), 8, 128, False),
        (nn.Conv2d(8, 4, 3, padding=1, dilation=2), 8, 128, False),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8, 128, False),
        (nn.Conv2d(1, 4, 3, padding=1), 8, 128, False),
    ],
)
def test_maps_are_moved_where_that_takes_less_work(layer: nn.Conv2d, side: int, samples: int, cheaper: bool) -> None:
    x = torch.empty(samples, layer.in_channels, side, side)
    assert products.are_shifts_cheaper(layer, x, 128) is cheaper


def test_all_positions_count_where_maps_are_moved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = model.eval()
    x = torch.randn(100, 1, 14, 14)
    some, every = (
        gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 100), positions=positions)
        for positions in (128, None)
    )
    assert (some["2"].rows, some["4"].rows) == (100 * 144, 100 * 128)
    assert torch.equal(some["2"].gram, every["2"].gram)


def test_layers_that_read_the_same_tensor_share_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Branches().eval(), torch.randn(4, 2, 12, 9)
    multiplied = []
    of = products.Products.of
    monkeypatch.setattr(products.Products, "of", lambda parts: multiplied.append(1) or of(parts))
    found = gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 2), positions=None)
    assert torch.equal(found["left"].gram, found["right"].gram)
    assert not torch.equal(found["left"].gram, found["plain"].gram)  # no constant to refit: not centred
    assert len(multiplied) == 2 * 5  # two batches; left and right are one of five


@pytest.mark.parametrize("value", [0.0, 0.3, 1000.7])
def test_a_channel_that_never_varies_has_exact_zeros(value: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval(), torch.randn(50, 1, 9, 9)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, value
    inputs = gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 7))["2"]
    assert inputs.mean[0, 9:18].tolist() == pytest.approx([value] * 9)
    assert not inputs.gram[0, 9:18].any()
    assert bool((inputs.gram[0].diagonal() > 0).reshape(4, 9).all(1)[[0, 2, 3]].all())


def test_an_input_that_changes_after_it_was_read_counts_as_it_was_read() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x)
            x.mul_(0.0)
            return y

    model, x = Changed().double().eval(), torch.randn(20, 3, dtype=torch.float64)
    inputs = gather_inputs(model, trace(model, x[:1]), HeldBatches.of(x, None, 8))["b"]
    torch.testing.assert_close(inputs.gram[0], torch.cov(model.a(x).detach().T, correction=0))


def test_it_says_before_any_statistics_whether_all_groups_can_be_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network()
    traced = trace(model, x[:1])
    assert unread_group(model, traced, as_batch(x[:1])) is None
    monkeypatch.setattr(layer_inputs, "MEMORY_BYTES", 8 * (36**2 + 6**2 + 5**2))
    assert why_too_large(model, traced) is None
    monkeypatch.setattr(layer_inputs, "MEMORY_BYTES", 8 * (36**2 + 6**2 + 5**2) - 1)
    assert why_too_large(model, traced) == "Gram matrices would take 0.0 GiB, at most 0 GiB (the largest is that of b)"


class Multiplies(nn.Module):
    """Reads ``a`` by a layer whose weight plain code multiplies with: no call of the module shows its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), self.b.weight, self.b.bias)


@pytest.mark.parametrize(
    ("model", "shape", "group"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3)), (1, 1, 6, 6), "0"),
        (Multiplies(), (1, 4), "a"),
    ],
)
def test_a_group_without_a_reader_that_is_called_is_named(model: nn.Module, shape: tuple[int, ...], group: str) -> None:
    x = torch.randn(shape)
    traced = trace(model.eval(), x)
    assert unread_group(model, traced, as_batch(x)) == group
    with pytest.raises(BadInputError, match=f"no convolution or linear layer reads group {group!r} "):
        problem_of(Calibration(model, traced, HeldBatches.of(x, None, 1), F.mse_loss))
