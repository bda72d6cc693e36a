"""Statistics for criteria: weights, gradients, moments of activations and curvature on calibration samples.

One pass over the calibration data serves every criterion. It is streamed: each *draw* (a minibatch, the single samples
of a minibatch, or the whole set) is handed over as it comes, so that memory does not grow with the number of
minibatches. One forward pass of a minibatch gives its gradients, gates and moments together. The network is called
through ``torch.func.functional_call`` on detached leaves: its ``.grad`` fields, its ``requires_grad`` flags and its
buffers are never touched.
"""

from collections.abc import Generator, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from amcsearch.graph import Batch, Batches, HeldBatches, Trace, Tree, check_folded
from amcsearch.methods.curvature import GateTable, curvature
from amcsearch.methods.first_order import ForwardPass, LossFunction, Taps, drawn_targets, mean_gradients, sample_gates
from amcsearch.methods.moments import Moments, Patches
from amcsearch.methods.needs import Curvature, Draw, Need, SampleGates, ShortTraining, SquaredGradients, Statistic
from amcsearch.methods.short_training import movement_scores

__all__ = ["Draw", "LossFunction", "Need", "Statistic", "Statistics", "gather", "sliced_parameters"]

_GRADIENTS = {Statistic.MINIBATCH_GRADIENT, Statistic.SET_GRADIENT}


@dataclass(frozen=True)
class Statistics:
    """One draw: tensors by state-dict name; empty where nobody asked.

    ``gradients`` (shape of the parameter) are those of the mean loss over the draw's ``samples``. ``inputs`` and
    ``patches`` are moments of what the layer of a weight reads. ``by_need`` holds, by need, what that need describes,
    broadcastable to the parameter; in a ``SAMPLE`` draw with an axis of samples before it.
    """

    draw: Draw
    samples: int
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Moments] = field(default_factory=dict)
    patches: Mapping[str, Patches] = field(default_factory=dict)
    by_need: Mapping[Need, Mapping[str, Tensor]] = field(default_factory=dict)


def gather(
    model: nn.Module,
    trace: Trace,
    batches: Batches,
    loss_fn: LossFunction,
    needs: AbstractSet[Need],
) -> Generator[Statistics, None, None]:
    """Yield what ``needs`` names, draw after draw; the last one covers the whole set (weights are always in it).

    The last of the ``batches`` may be smaller and weighs by its samples. They are read once, and once more for a short
    training. The network is in eval mode while it runs and in the mode it was found between draws. Tokens (B, T)
    without a target (-100) count as padding in moments.

    Raises:
        BadInputError: samples that cannot be told apart, where single ones are asked for.
    """
    if not needs:
        parameters = sliced_parameters(model, trace)
        yield Statistics(Draw.SET, batches.samples, {name: p.detach() for name, p in parameters.items()})
        return
    task = _Pass(model, trace, loss_fn, needs, batches.samples)
    for batch in batches:
        yield from task.first_order(batch)
        for need, values in task.beyond(batch):
            task.add(need, values, batch.size)
    for need in needs:
        if isinstance(need, ShortTraining):
            task.total[need] = movement_scores(model, task.parameters, batches, loss_fn, need)
    yield task.whole()


def sliced_parameters(model: nn.Module, trace: Trace) -> dict[str, nn.Parameter]:
    """Return the parameters that some group cuts, under every name the trace uses (tied weights have several).

    Raises:
        BadInputError: as ``check_folded``.
    """
    check_folded(model, trace)
    named = dict(model.named_parameters(remove_duplicate=False))
    used = (part.tensor for slices in trace.slices.values() for part in slices)
    return {name: named[name] for name in dict.fromkeys(used) if name in named}


class _Pass:
    """One pass over the calibration data; sums are weighted by the share of samples."""

    def __init__(
        self, model: nn.Module, trace: Trace, loss_fn: LossFunction, needs: AbstractSet[Need], samples: int
    ) -> None:
        self.model, self.loss_fn, self.needs, self.samples = model, loss_fn, needs, samples
        self.parameters = sliced_parameters(model, trace)
        self.weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        self.gates = [need for need in needs if isinstance(need, SampleGates)]
        self.taps = Taps.on(
            model,
            trace,
            list(self.parameters),
            moments=Statistic.INPUT_MOMENTS in needs,
            patches=Statistic.PATCH_PRODUCTS in needs,
            gates=bool(self.gates),
        )
        self.table = GateTable.of(trace)
        self.total: dict[Need, dict[str, Tensor]] = {}
        self.generators = {
            need: torch.Generator().manual_seed(need.seed)
            for need in needs
            if isinstance(need, SampleGates | SquaredGradients | Curvature)
        }

    def first_order(self, batch: Batch) -> Iterator[Statistics]:
        """Do all that one forward pass serves."""
        is_differentiated = bool(self.needs & _GRADIENTS or self.gates)
        if not is_differentiated and not (self.taps.moments or self.taps.patches):
            return
        ran = ForwardPass.run(self.model, self.parameters, batch, self.taps)
        loss = self.loss_fn(ran.output, ran.targets) if is_differentiated else None
        if loss is not None and self.needs & _GRADIENTS:
            gradients = mean_gradients(ran, self.parameters, loss)
            if Statistic.MINIBATCH_GRADIENT in self.needs:
                yield Statistics(Draw.MINIBATCH, ran.samples, self.weights, gradients)
            if Statistic.SET_GRADIENT in self.needs:
                self.add(Statistic.SET_GRADIENT, gradients, ran.samples)
        by_need: dict[Need, Mapping[str, Tensor]] = {}
        for need in self.gates:
            if need.labels == "model":
                loss = self.loss_fn(ran.output, self._drawn(ran, need))
            else:
                loss = self.loss_fn(ran.output, ran.targets)
            by_need[need] = sample_gates(ran.samples, self.taps, self.weights, loss)
        if by_need:
            yield Statistics(Draw.SAMPLE, ran.samples, self.weights, by_need=by_need)

    def beyond(self, batch: Batch) -> Iterator[tuple[Need, Mapping[str, Tensor]]]:
        """Do what takes passes of its own."""
        for need in self.needs:
            if isinstance(need, SquaredGradients):
                yield need, self._squared_gradients(need, batch)
            elif isinstance(need, Curvature):
                arguments = self.model, self.parameters, self.table, batch, self.loss_fn
                yield need, curvature(*arguments, need, self.generators[need])

    def _squared_gradients(self, need: SquaredGradients, batch: Batch) -> dict[str, Tensor]:
        mean: dict[str, Tensor] = {}
        silent = Taps({}, moments=False, patches=False, gated=frozenset())
        for sample in HeldBatches(batch, 1):
            ran = ForwardPass.run(self.model, self.parameters, sample, silent)
            targets = self._drawn(ran, need) if need.labels == "model" else ran.targets
            gradients = mean_gradients(ran, self.parameters, self.loss_fn(ran.output, targets))
            for name, gradient in gradients.items():
                mean[name] = mean.get(name, 0) + gradient.square() / batch.size
        return mean

    def _drawn(self, ran: ForwardPass, need: SampleGates | SquaredGradients) -> Tree:
        return drawn_targets(self.loss_fn, ran.output, ran.targets, self.generators[need])

    def add(self, need: Need, values: Mapping[str, Tensor], samples: int) -> None:
        """Add one batch's means to those of the set."""
        total = self.total.setdefault(need, {})
        for name, value in values.items():
            total[name] = total.get(name, 0) + value * (samples / self.samples)

    def whole(self) -> Statistics:
        """Return the draw of the whole set."""
        by_need: dict[Need, Mapping[str, Tensor]] = dict(self.total)
        for need in self.total:
            if isinstance(need, Curvature) and need.by == "gates":
                by_need[need] = self.table.spread(self.total[need], self.weights)
        gradients = by_need.pop(Statistic.SET_GRADIENT, {})
        moments = {
            name: value.aligned(self.weights[name], transposed=self.taps.is_transposed(name))
            for name, value in self.taps.inputs.items()
        }
        return Statistics(Draw.SET, self.samples, self.weights, gradients, moments, dict(self.taps.products), by_need)
