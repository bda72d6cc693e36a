"""From a configuration to a trained network with its data and its channel groups."""

import json
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from amcsearch.config import Config, RecipeConfig, call_factory
from amcsearch.core import BadInputError
from amcsearch.graph import Trace, trace
from amcsearch.training import (
    DataSplits,
    Progress,
    TrainingRecipe,
    check_samples,
    check_splits,
    load_checkpoint,
    logits,
    make_splits,
    pretrained,
    stacked,
    with_dense_targets,
)

__all__ = ["Workload", "cache_folder", "load_workload", "training_recipe"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workload:
    """A trained network with its data and its channel groups; ``example`` is one batch of the device's size."""

    model: nn.Module
    splits: DataSplits
    example: Tensor
    trace: Trace


def cache_folder() -> Path:
    """Where trained reference networks are kept: ``AMCSEARCH_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("AMCSEARCH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amcsearch"


def training_recipe(config: RecipeConfig) -> TrainingRecipe:
    """Return the training loop's recipe for a section of the configuration."""
    return TrainingRecipe(**{field.name: getattr(config, field.name) for field in fields(TrainingRecipe)})


def load_workload(config: Config, *, train: bool = True, progress: Progress | None = None) -> Workload:
    """Make the network, load or train it, cut the data splits, and trace its channel groups.

    ``train`` false leaves the weights as the factory made them: enough to plan, not to search.

    Raises:
        BadInputError: a factory that raises or returns something else, data of another shape, a checkpoint that
            does not fit, a diverging training, or a network with nothing to prune.
    """
    given = call_factory(config.data.factory, config.data.kwargs, "data.factory")
    splits = make_splits(given, config.data.splits.sizes(), config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = call_factory(config.model.factory, config.model.kwargs, "model.factory")
    if not isinstance(model, nn.Module):
        raise BadInputError(
            f"model.factory: {config.model.factory} returned a {type(model).__name__}, expected a torch.nn.Module"
        )
    model.eval()
    sample = _checked_sample(config, model, splits)
    if config.model.checkpoint is not None:
        load_checkpoint(model, Path(config.model.checkpoint))
    elif config.model.pretrain is not None and train:
        _pretrain(config, model, splits, progress)
    model.eval()
    if config.data.targets == "dense":
        splits = with_dense_targets(splits, model)
    found = trace(model, sample)
    for skipped in found.skipped:
        _log.info("not pruned: %s: %s", skipped.name, skipped.reason)
    if not found.network.groups:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in found.skipped[:3])
        raise BadInputError(f"model.factory: nothing in {type(model).__name__} can be pruned ({reasons})")
    return Workload(model, splits, sample.repeat(config.device.batch, *[1] * (sample.ndim - 1)), found)


def _checked_sample(config: Config, model: nn.Module, splits: DataSplits) -> Tensor:
    """Check every split against the model's input and output; return one input (1, …)."""
    sample, target = stacked(splits.calibration, limit=1)
    shape = config.model.input_shape or tuple(sample.shape[1:])
    check_samples(sample, target, name="calibration", input_shape=shape, num_classes=None)
    try:
        with torch.inference_mode():
            classes = logits(model(sample)).shape[-1]
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInputError(
            f"model.factory: {type(model).__name__} cannot take the data's inputs {tuple(sample.shape)}: {reason}"
        ) from error
    check_splits(splits, input_shape=shape, num_classes=classes, limit=None)
    return sample


def _pretrain(config: Config, model: nn.Module, splits: DataSplits, progress: Progress | None) -> None:
    assert config.model.pretrain is not None
    made_by = [config.model.factory, config.model.kwargs, config.data.factory, config.data.kwargs]
    pretrained(
        model,
        splits.train,
        training_recipe(config.model.pretrain),
        key=json.dumps(made_by, sort_keys=True),
        seed=config.seed,
        cache_dir=cache_folder(),
        torch_device=config.evaluation.torch_device,
        progress=progress,
    )
    model.cpu()
