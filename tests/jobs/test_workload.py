"""A network with its data, from objects in memory: what fits, and what is refused in one line before any work."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import IterableDataset

from amcsearch.core.errors import BadInputError
from amcsearch.jobs.request import make_request
from amcsearch.jobs.workload import Workload, make_workload
from amcsearch.training.splits import stacked
from amcsearch.training.tasks.custom import Custom

Data = Callable[[], tuple[Tensor, Tensor]]
SETTINGS = {"data.splits": {"calibration": 12, "search": 12, "test": 12}}
IMAGES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )


def workload(model: nn.Module, data: object, settings: dict[str, object] | None = None) -> Workload:
    return make_workload(*make_request(None, SETTINGS if settings is None else settings, {}, model, data))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_of_another_type_is_refused_with_the_cure(dtype: torch.dtype) -> None:
    with pytest.raises(BadInputError, match=rf"0\.weight of Sequential is {dtype}, .*\.float\(\)"):
        workload(network().to(dtype), (IMAGES, LABELS))


def test_images_of_bytes_are_refused_with_the_cure() -> None:
    images = (50 * IMAGES).clamp(0, 255).to(torch.uint8)
    with pytest.raises(BadInputError, match=r"inputs of torch\.uint8, Sequential takes torch\.float32; .*/ 255"):
        workload(network(), (images, LABELS))

    class Scaling(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    assert workload(Scaling(*network()), (images, LABELS)).example.inputs["0"].dtype == torch.uint8


def test_an_output_without_samples_is_refused() -> None:
    class Mean(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean()

    with pytest.raises(BadInputError, match=r"Mean gives an output of shape \(\) for one sample.*keep the axis"):
        workload(Mean(*network()), (IMAGES, LABELS))


def test_little_data_are_cut_into_smaller_splits_and_that_is_said() -> None:
    job = workload(network(), (IMAGES, LABELS), {})
    assert job.warnings[0].startswith("data: calibration 12, search 12, test 12 are cut from 60 samples of train;")
    assert [len(stacked(split)[0]) for split in (job.splits.calibration, job.splits.search)] == [12, 12]
    assert workload(network(), (IMAGES, LABELS)).warnings == ()


def test_computed_weights_are_folded_in_a_copy_and_that_is_said() -> None:
    model = network()
    parametrizations.weight_norm(model[0])
    job = workload(model, (IMAGES, LABELS))
    (said,) = job.warnings
    assert said.startswith("the weight norm, spectral norm or other computed weight of 1 layer (0) was folded")
    assert [group.name for group in job.trace.network.groups] == ["0", "2"]
    assert "0.weight" in dict(job.model.named_parameters())
    assert "0.weight" not in dict(model.named_parameters())


def test_iterable_splits_that_are_cut_short_are_said() -> None:
    class Repeated(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return ((IMAGES[i % 60], LABELS[i % 60]) for i in range(2000))

    data = {"train": (IMAGES, LABELS), "search": Repeated(), "test": Repeated()}
    said = workload(network(), data, {"data.splits": {"calibration": 8, "test": 600}}).warnings
    assert any("the search split is the first 512 samples of an iterable data set" in text for text in said)
    assert not any("the test split is the first" in text for text in said)


def test_one_hot_targets_give_the_job_of_class_ids() -> None:
    one_hot = workload(network(), (IMAGES, nn.functional.one_hot(LABELS, 4).float()))
    plain = workload(network(), (IMAGES, LABELS))
    assert stacked(one_hot.splits.search)[1].dtype == torch.int64
    assert len(one_hot.splits.train) == len(plain.splits.train)


def test_vectors_are_targets_of_data_without_labels_alone() -> None:
    vectors = torch.randn(60, 4)
    with pytest.raises(BadInputError, match=r"data\.targets: dense"):
        workload(network(), (IMAGES, vectors))
    workload(network(), (IMAGES, vectors), {**SETTINGS, "data.targets": "dense"})


def compiled_inside() -> nn.Module:
    """A network one block of which is compiled."""
    model = network()
    return nn.Sequential(torch.compile(model[:3], backend="eager"), model[3:])


def compiled_in_place() -> nn.Module:
    model = network()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.DataParallel(network()), ["0", "2"]),
        (lambda: torch.compile(nn.DataParallel(network()), backend="eager"), ["0", "2"]),
        (compiled_inside, ["0.0", "0.2"]),
        (compiled_in_place, ["0", "2"]),
    ],
)
def test_the_network_inside_a_wrapper_is_taken(make: Callable[[], nn.Module], names: list[str]) -> None:
    wrapped = make()
    type_before = type(wrapped)
    job = workload(wrapped, (IMAGES, LABELS))
    assert [group.name for group in job.trace.network.groups] == names
    assert not any(type(module).__module__.startswith("torch._dynamo") for module in job.model.modules())
    assert all(getattr(module, "_compiled_call_impl", None) is None for module in job.model.modules())
    assert type(wrapped) is type_before
    assert torch.equal(job.model(IMAGES[:2]), network()(IMAGES[:2]))


def test_a_state_that_is_no_tensor_is_refused() -> None:
    class Counting(nn.Sequential):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    with pytest.raises(BadInputError, match=r"the state of Counting holds _extra_state, .* in buffers"):
        workload(Counting(*network()), (IMAGES, LABELS))


@pytest.mark.parametrize(("inside", "named"), [(False, "the model was"), (True, r"module '0' of Sequential was")])
def test_torchscript_is_refused_by_its_name(inside: bool, named: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean((2, 3))

    scripted = torch.jit.trace(Scaled(), IMAGES[:1])
    with pytest.raises(BadInputError, match=rf"^{named} made by TorchScript"):
        workload(nn.Sequential(scripted) if inside else scripted, (IMAGES, LABELS))


def test_a_list_with_an_entry_for_each_sample_is_no_output() -> None:
    class Detector(nn.Sequential):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"scores": row} for row in super().forward(x)]

    task = Custom(lambda output, _: output[0]["scores"].sum(), lambda output, _: output[0]["scores"].sum())
    with pytest.raises(BadInputError, match=r"tensors for \d+ samples and 1 for one.*in place of a list of samples"):
        make_workload(*make_request(None, SETTINGS, {"task": task}, Detector(*network()), (IMAGES, LABELS)))


def test_inputs_that_the_network_cannot_take_name_the_keys_that_choose_others() -> None:
    with pytest.raises(BadInputError, match=r"^model: Sequential, given inputs .*name those by data\.inputs"):
        workload(network(), (LABELS, IMAGES))
