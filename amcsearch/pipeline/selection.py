"""Which channels go, and how what reads them is refitted: the configured criterion or selector, and reconstruction."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from amcsearch.config import Config, build, pick
from amcsearch.core import BadInputError
from amcsearch.evaluation.reconstruction import Reconstruction
from amcsearch.evaluation.sequential import SequentialReconstruction
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.folding import Means, means_for
from amcsearch.methods.layer_inputs import LayerInputs, gather_inputs
from amcsearch.methods.needs import vanishes
from amcsearch.methods.ranking import Ranking, UnitScores, rank, score_units
from amcsearch.methods.selector import Calibration, problem_of, select
from amcsearch.methods.selectors import SELECTORS
from amcsearch.pipeline.network import Network
from amcsearch.training.losses import task_loss

__all__ = ["Choice", "choose_channels", "name_of_choice"]


@dataclass(frozen=True)
class Choice:
    """The order of every group's units, and what is done to the readers of what leaves: a refit, or folded means.

    ``scores`` are a criterion's; a selector orders the units of each group by themselves and has none.
    """

    ranking: Ranking
    reconstruction: Reconstruction | SequentialReconstruction | None
    means: Means | None
    scores: UnitScores | None = None


def name_of_choice(config: Config) -> str:
    """Name what chooses channels: the selector, or the criterion where there is none."""
    return config.selection.selector or config.selection.criterion


def choose_channels(config: Config, network: Network, inputs: Tensor, targets: Tensor, batch_size: int) -> Choice:
    """Rank the units of every group on calibration data, and prepare the refit of every policy where one is asked for.

    Raises:
        BadInputError: an unknown criterion, selector or parameter, a network that the selector cannot judge, or a
            criterion of gradients that are 0.
    """
    selection, model, trace = config.selection, network.model, network.trace
    calibration = Calibration(model, trace, inputs, targets, task_loss, batch_size)
    if selection.selector is not None:
        return _by_selector(config, calibration)
    criterion = build(pick(CRITERIA, selection.criterion, "selection.criterion"), selection.params, "selection.params")
    _check_says_something(config, criterion)
    scores = score_units(model, trace, {"": criterion}, inputs, targets, task_loss, batch_size)[""]
    ranking = rank(scores)
    if config.recovery.reconstruction in ("auto", "none"):
        means = means_for(criterion, model, trace, inputs, targets, task_loss, batch_size)
        return Choice(ranking, None, means, scores)
    seen = gather_inputs(model, trace, inputs, batch_size)
    return Choice(ranking, _reconstruction(config.recovery.reconstruction, calibration, seen), None, scores)


def _check_says_something(config: Config, criterion: Criterion) -> None:
    if config.data.targets == "dense" and criterion.needs and all(map(vanishes, criterion.needs)):
        raise BadInputError(
            f"selection.criterion = {config.selection.criterion!r} looks at the gradient of the loss, which is 0 where "
            "the targets are the dense network's own outputs (data.targets: dense); choose obd or true_fisher (second "
            "derivatives), wanda_channels or activation_variance (what is read), or a selector such as obc"
        )


def _by_selector(config: Config, calibration: Calibration) -> Choice:
    maker = pick(SELECTORS, config.selection.selector or "", "selection.selector")
    selector = build(maker, config.selection.params, "selection.params")
    ranking, seen = select(problem_of(calibration, labels=selector.labels), selector)
    refit = selector.refit if config.recovery.reconstruction == "auto" else config.recovery.reconstruction
    if refit == "none":
        return Choice(ranking, None, None)
    return Choice(ranking, _reconstruction(refit, calibration, seen), None)


def _reconstruction(
    refit: str, calibration: Calibration, seen: Mapping[str, LayerInputs]
) -> Reconstruction | SequentialReconstruction:
    model, trace = calibration.model, calibration.trace
    if refit == "sequential":
        return SequentialReconstruction(model, trace, seen, calibration.inputs, calibration.batch_size)
    return Reconstruction(model, trace, seen.values(), refit)
