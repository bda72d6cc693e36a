"""What a search would do, how large it is and how long it would take, without doing it."""

import time
from typing import Any

import torch

from amcsearch.config import Config, RecipeConfig
from amcsearch.core import PruningPolicy
from amcsearch.pipeline.device import load_device
from amcsearch.pipeline.job import make_evaluator
from amcsearch.pipeline.network import Network, load_network
from amcsearch.training.data import fetch
from amcsearch.training.losses import task_loss
from amcsearch.training.splits import length

__all__ = ["plan"]


def plan(config: Config, *, strict: bool = False) -> dict[str, Any]:
    """Return sizes, costs, the space and the expected seconds of a search; nothing is trained or written.

    Times are extrapolated from one training step and one evaluation of the largest uniform policy within the budget.

    Raises:
        BadInputError, InfeasibleBudgetError: as the search itself would.
    """
    network = load_network(config, train=False)
    device = load_device(config, network, strict=strict)
    spec = network.trace.network
    uniform = spec.policy(device.feasible.largest_uniform())
    return {
        "name": config.name,
        "network": {
            "factory": config.model.factory,
            "layers": len(spec.layers),
            "groups": len(spec.groups),
            "skipped": [f"{skipped.name}: {skipped.reason}" for skipped in network.trace.skipped],
        },
        "samples": {
            name: length(getattr(network.splits, name), name) for name in ("train", "calibration", "search", "test")
        },
        "dense": dict(device.dense),
        "budget": dict(device.feasible.budget.limits),
        "largest_uniform": dict(device.grid.cost(uniform)),
        "channel_multiple": device.channel_multiple,
        "widths_left_out": device.widths_left_out,
        "policies": device.space.size,
        "agent": config.search.agent,
        "baseline": config.search.baseline,
        "trials": config.search.trials,
        "warnings": list(device.warnings),
        "expected_seconds": _expected_seconds(config, network, uniform),
    }


def _expected_seconds(config: Config, network: Network, uniform: PruningPolicy) -> dict[str, float]:
    evaluator = make_evaluator(config, network)
    evaluator.evaluate(uniform)
    evaluation = evaluator.evaluate(uniform).seconds
    searches = 1 + (config.search.baseline not in (None, config.search.agent))
    seconds = {"search": evaluation * config.search.trials * searches}
    if config.model.pretrain is not None:
        seconds["network"] = _training_seconds(network, config.model.pretrain)
    if config.recovery.finetune is not None:
        seconds["finetune"] = _training_seconds(network, config.recovery.finetune)
    return {**seconds, "total": sum(seconds.values())}


def _training_seconds(network: Network, recipe: RecipeConfig) -> float:
    """Time one forward and backward pass of a batch (the second of two), times the batches of the recipe."""
    count = length(network.splits.train, "train")
    inputs, targets = fetch(network.splits.train, range(min(recipe.batch_size, count)))
    step = 0.0
    for _ in range(2):
        start = time.perf_counter()
        parameters = [p for p in network.model.parameters() if p.requires_grad]
        torch.autograd.grad(task_loss(network.model(inputs), targets), parameters, allow_unused=True)
        step = time.perf_counter() - start
    return step * -(-count // recipe.batch_size) * recipe.epochs
