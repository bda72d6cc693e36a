"""The data of a job: data sets from a factory or from memory, as calls of the network, cut into splits and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from amcsearch.config import Config, call_factory, import_factory
from amcsearch.core import BadInputError
from amcsearch.graph import Batch
from amcsearch.jobs.network_check import probes_of
from amcsearch.jobs.task import BUILT_IN, check_clear, check_logits, first_output, training_task
from amcsearch.training import (
    DEFAULT_SIZES,
    SPLITS,
    STREAM_SAMPLES,
    TRAIN_SAMPLES,
    DataSplits,
    Items,
    Samples,
    SplitRecord,
    Task,
    as_datasets,
    checked_splits,
    choose_form,
    collate_of,
    first_item,
    fixed_splits,
    is_ragged,
    is_stackable,
    judged_tensor,
    length,
    make_splits,
    seeded,
)

__all__ = ["PreparedData", "made_data", "prepared_data"]


@dataclass(frozen=True)
class PreparedData:
    """The splits of a job, one ``sample`` of them, and what is known of them; see ``Workload``."""

    splits: DataSplits
    sample: Batch
    probes: Batch
    records: Mapping[str, SplitRecord]
    samples: Mapping[str, int]
    warnings: tuple[str, ...]


def prepared_data(
    config: Config, data: object, model: nn.Module, task: Task, *, is_named: bool, limit: int | None
) -> PreparedData:
    """Cut the splits, and check them and what the network gives for a sample.

    Args:
        config: how to read, cut and check.
        data: of ``made_data``.
        model: the network.
        task: what targets are judged by.
        is_named: whether the task was named, not taken by default.
        limit: samples at most that are read of a split that is not in memory; None reads all but those of train.

    Raises:
        BadInputError: items that cannot go through the network, splits that do not fit, or samples that are wrong.
    """
    with seeded(config.seed):
        datasets = _as_calls(config, model, task, data)
        cut = make_splits(datasets, config.data.splits.sizes(), config.seed, memory_mib=config.data.memory_mib)
    splits, changing = fixed_splits(cut, config.seed, memory_mib=config.data.memory_mib, limit=limit)
    are_class_ids = training_task(config, task).is_argmax
    sample, output = first_output(config, model, splits, are_class_ids=are_class_ids)
    if are_class_ids:
        check_logits(config, model, task, output, sample.targets)
    if not is_named and config.data.targets == "given":
        check_clear(output, sample.targets)
    shapes = [tuple(tensor.shape[1:]) for tensor in sample.inputs.values()]
    has_one_shape = len(shapes) == 1 and (config.model.input_shape is not None or is_stackable(splits.calibration))
    splits, doubtful, records = checked_splits(
        splits,
        input_shape=shapes[0] if has_one_shape else None,
        output_shape=judged_tensor(output, task.output).shape[1:] if are_class_ids else (),
        targets=config.data.targets,
        labelled=_labelled(config),
        cut=cut,
        seed=config.seed,
        limit=TRAIN_SAMPLES if limit is None else limit,
        are_class_ids=are_class_ids,
    )
    samples = {name: length(getattr(cut, name), name) for name in SPLITS}
    cuts = (*_about_cuts(config, datasets, cut), *_about_streams(config, datasets, cut))
    return PreparedData(splits, sample, probes_of(splits), records, samples, (*cuts, *changing, *doubtful))


def made_data(config: Config, given: object) -> object:
    """Return what was handed over, or what the data factory gives.

    Raises:
        BadInputError: no factory, or one that raises.
    """
    if given is not None:
        return given
    if config.data.factory is None:
        raise BadInputError(
            "data.factory is null: the data was handed over in Python; name a factory, or hand data over again"
        )
    return call_factory(config.data.factory, config.data.kwargs, "data.factory")


def _as_calls(config: Config, model: nn.Module, task: Task, data: object) -> dict[str, Samples]:
    """Return the data sets by split, with how their items go through the network."""
    keys = config.data
    datasets = as_datasets(data, "data" if keys.factory is None else "data.factory")
    collate = collate_of(data) if keys.collate is None else import_factory(keys.collate)
    if "train" not in datasets:
        return datasets
    form = choose_form(
        model,
        first_item(datasets["train"], "train"),
        inputs=keys.inputs,
        target=keys.target,
        collate=collate,
        is_judged=bool(_labelled(config)),
    )
    if type(task) not in BUILT_IN and form.target is not None and is_ragged(Items(datasets["train"], form, collate)):
        form = replace(form, is_ragged=True)
    return {
        name: Items(dataset, form, collate, keys.workers, keys.epoch_samples if name == "train" else None)
        for name, dataset in datasets.items()
    }


def _about_cuts(config: Config, datasets: Mapping[str, Samples], splits: DataSplits) -> list[str]:
    """Say which sizes were taken where little data leave fewer samples than usual."""
    given = {*datasets, *config.data.splits.sizes()}
    sizes = {name: length(getattr(splits, name), name) for name in SPLITS[1:] if name not in given}
    if all(sizes[name] == usual for name, usual in DEFAULT_SIZES.items() if name in sizes):
        return []
    total = length(datasets["train"], "train")
    cut = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return [f"data: {cut} are cut from {total} samples of train; set data.splits for other sizes"]


def _about_streams(config: Config, datasets: Mapping[str, Samples], splits: DataSplits) -> list[str]:
    """Say which iterable splits were cut short without being asked for."""
    streams = {name for name, dataset in datasets.items() if isinstance(dataset, Items) and dataset.is_stream}
    short = streams - {"train", *config.data.splits.sizes()}
    return [
        f"data: the {name} split is the first {STREAM_SAMPLES} samples of an iterable data set; set data.splits.{name} "
        "for another number"
        for name in SPLITS
        if name in short and length(getattr(splits, name), name) == STREAM_SAMPLES
    ]


def _labelled(config: Config) -> tuple[str, ...]:
    """Names of the splits whose own targets are read."""
    if config.data.targets == "given":
        return SPLITS
    return ("train",) if config.model.pretrain is not None else ()
