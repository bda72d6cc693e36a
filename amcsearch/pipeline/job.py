"""Everything a search needs, assembled from its configuration."""

import math
from dataclasses import dataclass, replace

from amcsearch.config import Config
from amcsearch.core import BadInputError, Evaluation
from amcsearch.evaluation.evaluator import Evaluator, default_batch_size
from amcsearch.methods.ranking import UnitScores
from amcsearch.pipeline.device import Device, load_device
from amcsearch.pipeline.network import Network, load_network
from amcsearch.pipeline.observer import Phases
from amcsearch.pipeline.selection import Choice, choose_channels, name_of_choice
from amcsearch.training.data import stacked

__all__ = ["Job", "assemble", "make_evaluator", "reranked"]


@dataclass(frozen=True)
class Job:
    """All that a search needs: ``dense`` is what the proxy measures of the dense network.

    ``network`` is the dense one. After a round of pruning ``evaluator`` and ``scores`` are those of the smaller one,
    and the device's space is what that leaves to choose. ``scores`` of the units are None where a selector chooses
    channels.
    """

    config: Config
    network: Network
    device: Device
    evaluator: Evaluator
    dense: Evaluation
    scores: UnitScores | None = None


def assemble(config: Config, phases: Phases, *, strict: bool = False) -> Job:
    """Load or train the network, price it on the device, rank its channels and evaluate it unpruned.

    Raises:
        BadInputError: as ``load_network``, ``load_device`` and ``make_evaluator``, or a dense loss that is not finite.
        InfeasibleBudgetError: no policy meets the budget.
    """
    with phases("network", "Loading or training the network"):
        network = load_network(config, progress=phases.observer.epoch)
    with phases("costs", "Pricing it on the device"):
        device = load_device(config, network, strict=strict)
        for text in device.warnings:
            phases.observer.warn(text)
    with phases("ranking", f"Ranking channels by {name_of_choice(config)}"):
        choice = _choice(config, network)
        evaluator = _evaluator(config, network, choice)
        dense = evaluator.evaluate(network.trace.network.dense)
    if not math.isfinite(dense.loss):
        raise BadInputError(
            f"the dense network's loss on the search split is {dense.loss}, must be finite; "
            "look at model.checkpoint, model.pretrain and the data"
        )
    return Job(config, network, device, evaluator, dense, choice.scores)


def reranked(job: Job, network: Network) -> Job:
    """Return the job with the channels of another network ranked and evaluated in place of the dense one's.

    Raises:
        BadInputError: as ``make_evaluator``.
    """
    choice = _choice(job.config, network)
    return replace(job, evaluator=_evaluator(job.config, network, choice), scores=choice.scores)


def make_evaluator(config: Config, network: Network) -> Evaluator:
    """Rank the channels by the configured criterion or selector and return the accuracy proxy.

    Raises:
        BadInputError: as ``choose_channels``.
    """
    return _evaluator(config, network, _choice(config, network))


def _choice(config: Config, network: Network) -> Choice:
    inputs, targets = stacked(network.splits.calibration)
    return choose_channels(config, network, inputs, targets, config.evaluation.batch_size or default_batch_size(inputs))


def _evaluator(config: Config, network: Network, choice: Choice) -> Evaluator:
    inputs, _ = stacked(network.splits.calibration)
    return Evaluator(
        network.model,
        network.trace,
        choice.ranking,
        inputs,
        stacked(network.splits.search),
        batch_size=config.evaluation.batch_size or default_batch_size(inputs),
        bn_recalibration=config.recovery.bn_recalibration,
        reconstruction=choice.reconstruction,
        torch_device=config.evaluation.torch_device,
        means=choice.means,
    )
