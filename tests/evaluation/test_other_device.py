"""Statistics, evaluation and training on a device that is not the CPU give what they give there.

The other device is there on any machine: its tensors are the CPU's, but they refuse to meet those of the CPU, as on a
real device. Its name is that of a torch device without kernels of its own.
"""

import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import TensorDataset

from amcsearch.core.policy import PruningPolicy
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import HeldBatches, duplicate
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods import CRITERIA, REFITS, SELECTORS, Calibration, gather_inputs, problem_of, select
from amcsearch.methods.ranking import rank_units
from amcsearch.recovery import Reconstruction, SequentialReconstruction
from amcsearch.recovery.bias import input_means
from amcsearch.training.loop import CLASS_IDS, Distillation, fit
from amcsearch.training.recipe import TrainingRecipe
from amcsearch.training.tasks import Binary, Classification, Embedding, LanguageModelling, Multilabel, Regression

CPU = "cpu"
NAME = "lazy"
DEVICE = torch.device(NAME)
_MOVES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from"}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}  # by CPU's numbers, too


class Placed(Tensor):
    """A tensor of the CPU that says it is on the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Placed":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Placed({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _dispatched(func, args, kwargs or {})


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    placed = [tensor for tensor in tensors if isinstance(tensor, Placed)]
    name = func.name().partition(".")[0]
    strangers = [t for t in tensors if not isinstance(t, Placed) and t.ndim > 0]
    if placed and strangers and name not in _MOVES:
        indexing = name in _INDEXED and isinstance(args[0], Placed) and not any(t is args[0] for t in strangers)
        if not indexing:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {NAME} and cpu")
    asked = kwargs.get("device")
    stays = bool(placed) if asked is None else torch.device(asked) == DEVICE
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner = tree_map(lambda value: value.inner if isinstance(value, Placed) else value, (args, kwargs))
    result = func(*inner[0], **inner[1])
    if name in _MOVES and name != "aten::_to_copy":
        return args[0]
    if _is_in_place(func):
        return args[0]
    return tree_map(lambda value: Placed(value) if stays and isinstance(value, Tensor) else value, result)


def _is_in_place(func: Any) -> bool:
    first = func._schema.arguments[0] if func._schema.arguments else None
    return first is not None and first.alias_info is not None and first.alias_info.is_write


class _Creating(TorchDispatchMode):
    """Makes tensors on the other device where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _dispatched(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[str]:
    """Give the name of the other device, which exists meanwhile.

    Inference mode is ``no_grad`` there: a wrapper cannot make views of other tensors in it.
    """
    with _Creating(), patch("torch.inference_mode", torch.no_grad):
        yield NAME


class Tiny(nn.Module):
    """Two convolutions with batch norms and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def job() -> tuple[nn.Module, Trace, HeldBatches]:
    torch.manual_seed(0)
    model, x, y = Tiny().eval(), torch.randn(24, 1, 8, 8), torch.randint(0, 4, (24,))
    return model, trace(model, x[:1]), HeldBatches.of(x, y, 8)


def there(model: nn.Module, work: Callable[[nn.Module, str], Any]) -> Any:
    """Work with a copy of the model on the other device."""
    with other_device() as name:
        return work(duplicate(model).to(name), name)


def test_the_other_device_refuses_tensors_of_the_cpu() -> None:
    with other_device() as name:
        tensor = torch.ones(2, device=name)
        assert tensor.device.type == name
        assert (tensor + 1).sum().item() == 4.0
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            tensor + torch.ones(2)


@pytest.mark.parametrize("name", list(CRITERIA))
def test_criteria_rank_alike(job, name):
    model, traced, batches = job
    expected = rank_units(model, traced, CRITERIA[name](), batches, CLASS_IDS)
    ranking = there(model, lambda m, _: rank_units(m, traced, CRITERIA[name](), batches, CLASS_IDS))
    assert all(np.array_equal(ranking[group], expected[group]) for group in expected)


@pytest.mark.parametrize("name", list(SELECTORS))
def test_selectors_order_alike(job, name):
    model, traced, batches = job
    selector = SELECTORS[name]()

    def orders(m: nn.Module, _: str) -> dict[str, Any]:
        return select(problem_of(Calibration(m, traced, batches, CLASS_IDS), labels=selector.labels), selector).orders

    expected, ranking = orders(model, CPU), there(model, orders)
    assert all(np.array_equal(ranking[group], expected[group]) for group in expected)


@pytest.mark.parametrize("kind", ["recalibrated", "means", "sequential", *REFITS])
def test_policies_are_worth_the_same(job, kind):
    model, traced, batches = job
    ranking = rank_units(model, traced, CRITERIA["magnitude"](), batches, CLASS_IDS)
    policy = PruningPolicy({group.name: group.channels // 2 for group in traced.network.groups})

    def loss(m: nn.Module, torch_device: str) -> float:
        refit = means = None
        if kind == "means":
            means = input_means(m, traced, batches, CLASS_IDS)
        elif kind == "sequential":
            refit = SequentialReconstruction(m, traced, gather_inputs(m, traced, batches), batches)
        elif kind != "recalibrated":
            refit = Reconstruction(m, traced, gather_inputs(m, traced, batches).values(), kind)
        calibration = None if kind == "means" else batches
        options = {"reconstruction": refit, "means": means, "torch_device": torch_device}
        return Evaluator(m, traced, ranking, calibration, batches, **options).evaluate(policy).loss

    assert there(model, loss) == pytest.approx(loss(model, CPU), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_goes_alike(job, optimizer):
    model, _, batches = job
    data, recipe = TensorDataset(batches.whole.args[0], batches.whole.targets), {"optimizer": optimizer}

    def trained(_: nn.Module, torch_device: str) -> list[float]:
        schedule = TrainingRecipe(2, learning_rate=0.01, batch_size=8, **recipe)
        options = {"teacher": model, "distillation": Distillation(), "torch_device": torch_device}
        return fit(duplicate(model), data, schedule, seed=0, **options)

    assert there(model, trained) == pytest.approx(trained(model, CPU), rel=1e-6)


TASKS = {
    "classification": (Classification, (8, 4), torch.arange(8) % 4),
    "language_modelling": (LanguageModelling, (2, 4, 4), torch.arange(8).reshape(2, 4) % 4),
    "binary": (Binary, (8, 1), torch.arange(8).reshape(8, 1) % 2.0),
    "multilabel": (Multilabel, (8, 4), torch.arange(32).reshape(8, 4) % 2.0),
    "regression": (Regression, (8, 4), torch.arange(32.0).reshape(8, 4)),
    "embedding": (Embedding, (8, 4), torch.arange(32.0).reshape(8, 4)),
}


@pytest.mark.parametrize("name", list(TASKS))
def test_tasks_judge_alike(name):
    make, shape, targets = TASKS[name]
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def judged(outputs: Tensor, wanted: Tensor) -> list[float]:
        task = make()
        meter = task.meter()
        meter.update(outputs, wanted)
        drawn = task.draw(outputs, wanted, torch.Generator().manual_seed(0))
        learned = task.distillation(outputs, 0.5 * outputs, wanted, 4.0, 0.7)
        values = task.sample_values(outputs, wanted)
        extra = [] if values is None else [float(values.nansum())]
        return [float(task.loss(outputs, wanted)), meter.value(), float(drawn.sum()), float(learned), *extra]

    expected = judged(output, targets)
    with other_device() as device:
        values = judged(output.to(device), targets.to(device))
    assert values == pytest.approx(expected, rel=1e-6)


def test_the_script_for_cuda_says_that_a_device_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "cuda_check.py"
    with patch.object(sys, "argv", [str(path), "--torch-device", "cuda:99"]), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 2
    assert "not checked: evaluation.torch_device = 'cuda:99' is not available here" in capsys.readouterr().err
