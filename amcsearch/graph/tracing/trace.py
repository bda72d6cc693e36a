"""Tracing: from a module and an example to shapes and channel groups.

The module runs once. Beside every tensor go labels that say which channel each element belongs to (``labels``,
``flow``): moving data moves labels, element-wise operations tie them, products tie what they sum over. Channels that
move together make groups (``grouping``). An operation that cannot be followed costs the channels that reach it. All
groups are then checked by experiment: removing channels must compute what masking them does, in the shapes predicted
(``check``).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError, NetworkSpec, described
from amcsearch.graph.batch import Batch, as_batch, tensors_of_tree
from amcsearch.graph.folding import fold_weights
from amcsearch.graph.packed_attention import free_heads
from amcsearch.graph.removal import duplicate
from amcsearch.graph.slices import Skipped, Trace
from amcsearch.graph.tracing.assemble import Assembler
from amcsearch.graph.tracing.branches import Decisions, EvenRouting, follow_other_sides
from amcsearch.graph.tracing.check import verified
from amcsearch.graph.tracing.experiments import Runs
from amcsearch.graph.tracing.flow import Flow
from amcsearch.graph.tracing.grouping import settle
from amcsearch.graph.tracing.labels import Slots
from amcsearch.graph.tracing.layer_types import take_for_norm
from amcsearch.graph.tracing.live_tensors import LiveLog
from amcsearch.graph.tracing.operators import RULES, unlisted
from amcsearch.graph.tracing.recorder import UNUSED, Observation, observe
from amcsearch.graph.tracing.vanishing import vanishable

__all__ = ["trace"]


def trace(model: nn.Module, example: Tensor | Batch, *, verify: bool = True) -> Trace:
    """Return the shapes, channel groups and tensor slices of any torch module.

    Args:
        model: left untouched (mode, gradients, hooks): a copy is traced in eval mode, with plain weights in place of
            computed ones (``fold_weights``).
        example: one sample, as the network takes it; a tensor (1, …) is that of a network of one argument.
        verify: mask half of each group, remove it, and compare the outputs; a group that differs, or that changes
            the shape of an output, is moved to ``skipped`` with the reason. Only then groups that can vanish are known.

    Raises:
        BadInputError: the example has another batch size, the model cannot be copied or run on it, or TorchScript made
            a part of it.
    """
    if isinstance(example, Tensor) and (example.ndim < 1 or example.shape[0] != 1):
        raise BadInputError(f"trace: example of shape {tuple(example.shape)} must hold one sample: (1, …)")
    batch = as_batch(example)
    if batch.size != 1:
        raise BadInputError(f"trace: an example of {batch.size} samples, must hold one")
    _refuse_scripts(model)
    twin = _twin(model)
    try:
        folded = tuple(fold_weights(twin, batch))
    except Exception as error:
        raise _does_not_run(batch, error) from error
    with ExitStack() as stack:
        with EvenRouting(is_even=False) as routing:
            followed = _followed(twin, batch)
        if routing.choices and followed.idle:
            stack.enter_context(EvenRouting(is_even=True))
            evenly = _followed(twin, batch)
            if evenly.idle < followed.idle:
                followed = evenly
            else:
                stack.close()
        return replace(_traced(twin, batch, followed, verify=verify), folded=folded)


@dataclass(frozen=True)
class _Followed:
    """One run of a network that was followed."""

    flow: Flow
    live: LiveLog
    observation: Observation
    decisions: Decisions

    @property
    def idle(self) -> int:
        """How many parameters took part in nothing: of layers that did not run, or ran on no tokens."""
        unused = sum(skipped.reason == UNUSED for skipped in self.observation.skipped)
        return unused + sum(not prod(layer.out_size) for layer in self.observation.layers)


def _followed(twin: nn.Module, batch: Batch) -> _Followed:
    """Follow one run; once more, where modules that combine their channels can be taken for norms."""
    followed = _followed_once(twin, batch)
    modules = dict(twin.named_modules())
    taken = [path for path in followed.flow.mixing if path in modules and take_for_norm(modules[path])]
    return _followed_once(twin, batch) if taken else followed


def _followed_once(twin: nn.Module, batch: Batch) -> _Followed:
    flow = Flow(Slots(dict(_tensors(twin))), RULES, unlisted)
    live = LiveLog(flow)
    live.begin(batch.inputs.values())
    try:
        with Decisions() as decisions:
            observation = observe(twin, batch, flow)
    except Exception as error:
        raise _does_not_run(batch, error) from error
    live.end(tensor for _, tensor in tensors_of_tree(observation.output))
    return _Followed(flow, live, observation, decisions)


def _does_not_run(batch: Batch, error: Exception) -> BadInputError:
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()}
    shape = next(iter(shapes.values())) if len(shapes) == 1 else shapes
    return BadInputError(
        f"the model does not run on an example of shape {shape}: {described(error)}; check model.input_shape"
    )


def _traced(twin: nn.Module, batch: Batch, followed: _Followed, *, verify: bool) -> Trace:
    """Return the groups of a network that was followed, checked where they are to be verified."""
    flow, observation = followed.flow, followed.observation
    sides = follow_other_sides(twin, batch, flow, observation, followed.decisions)
    runs = Runs(batch, _training_batch(twin, batch, flow, observation), sides)
    grids = flow.grids()
    try:
        settle(flow.slots, grids, flow.crossings, flow.choices)
        code = [*grids, *flow.merges], flow.cuts(), flow.shapes
        assembler = Assembler(twin, observation, flow.slots, code)
        assembled = assembler.trace(followed.live)
        guesses = assembler.code.clear(assembler.guesses)
    except Exception as error:
        reason = f"its channels cannot be put in groups ({described(error)}): counted, left alone"
        skipped = (*observation.skipped, Skipped(type(twin).__name__, reason))
        assembled, guesses = Trace(NetworkSpec(tuple(observation.layers), ()), {}, {}, skipped), {}
    if not verify:
        return assembled
    checked = verified(twin, assembled, guesses, runs)
    try:
        return vanishable(twin, checked, observation.modules, runs)
    except Exception as error:  # of code that runs only as it is
        reason = f"which of its blocks can vanish is not known ({described(error)}): none is offered"
        return replace(checked, skipped=(*checked.skipped, Skipped(type(twin).__name__, reason)))


def _refuse_scripts(model: nn.Module) -> None:
    name = next((name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)), None)
    if name is not None:
        part = f"module {name!r} of {type(model).__name__}" if name else "the model"
        raise BadInputError(
            f"{part} was made by TorchScript, which hides its layers; give the network as it is before "
            "torch.jit.script, torch.jit.trace or torch.jit.load"
        )


def _training_batch(twin: nn.Module, batch: Batch, flow: Flow, observation: Observation) -> Batch | None:
    """Follow what runs in training only (auxiliary heads); return the two samples for it, None where nothing does."""
    unused = {skipped.name for skipped in observation.skipped if skipped.reason == UNUSED}
    if not unused:
        return None
    pair = batch.map(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor)
    try:
        used_before = set(flow.uses)
        observe(twin.train(), pair, flow)
    except Exception as error:
        observation.skipped.append(
            Skipped(type(twin).__name__, f"does not run in training mode on its example: {described(error)}")
        )
        return None
    finally:
        twin.eval()
    reached = {name for name, tensor in twin.named_parameters() if id(tensor) in set(flow.uses) - used_before}
    for i, skipped in enumerate(observation.skipped):
        if skipped.reason == UNUSED and skipped.name in reached:
            reason = "runs in training only: cut where it reads channels that are removed"
            observation.skipped[i] = Skipped(skipped.name, reason)
    return pair if reached & unused else None


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode."""
    try:
        twin = duplicate(model).eval()
    except Exception as error:
        raise BadInputError(
            f"{type(model).__name__} cannot be deep-copied ({described(error)}); make it copyable"
        ) from error
    for module in twin.modules():
        free_heads(module)
    return twin


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and buffers; a tensor that two modules share comes under both names."""
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_floating_point():
                yield f"{path}.{name}".lstrip("."), tensor
