"""Gradients by weights, gates of single samples and moments of inputs, from one pass over one minibatch.

A gate of ones, (N, C), multiplies what a layer reads. The gradient of the SUM of the samples' losses by it is, in one
backward pass, the derivative of every sample's loss by a gate on every channel: s_nc = sum over positions of
A_nc * dL_n/dA_nc. Exact in eval mode, where samples do not meet. With the mean loss it would be 1/N too small, which
matters where the last minibatch is shorter.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from amcsearch.core import BadInputError, Side
from amcsearch.graph import Batch, Trace, Tree, channels_first, evaluating, first_tensor
from amcsearch.methods.moments import Moments, Patches, aligned, moments_of, patches_of

__all__ = [
    "ForwardPass",
    "LossFunction",
    "Taps",
    "called",
    "drawn_classes",
    "drawn_targets",
    "mean_gradients",
    "readers",
    "replaced",
    "sample_gates",
]

LossFunction = Callable[[Any, Any], Tensor]  # (model output, targets) -> mean loss over the samples, a scalar
_NO_TARGET = -100  # cross-entropy's own convention


@dataclass
class Taps:
    """Listens to the layers that own a weight: moments of their inputs, and gates on them."""

    modules: Mapping[str, nn.Module]
    moments: bool
    patches: bool
    gated: frozenset[str]
    inputs: dict[str, Moments] = field(default_factory=dict)
    products: dict[str, Patches] = field(default_factory=dict)
    gates: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def on(
        cls, model: nn.Module, trace: Trace, names: Sequence[str], *, moments: bool, patches: bool, gates: bool
    ) -> "Taps":
        """Tap every layer that has one of the weights ``names``."""
        owners = dict(model.named_modules(remove_duplicate=False))
        modules = {name: owners[name.removesuffix("weight").removesuffix(".")] for name in names
                   if name.rpartition(".")[2] == "weight"}  # fmt: skip
        tapped = {name: m for name, m in modules.items() if isinstance(m, nn.Linear | _ConvNd)}
        return cls(tapped, moments, patches, frozenset(readers(trace) & set(tapped)) if gates else frozenset())

    @contextmanager
    def listening(self, batch: Batch) -> Iterator[None]:
        """Hear one forward pass of the batch."""
        self.gates.clear()
        names = self.modules if self.moments or self.patches else self.gated
        with ExitStack() as stack:
            for name in names:
                hook = self._hook(name, batch)
                stack.callback(self.modules[name].register_forward_pre_hook(hook).remove)
            yield

    def _hook(self, name: str, batch: Batch) -> Callable[..., Any]:
        def hear(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not args:
                return None
            self._measure(name, module, _counted(args[0].detach(), batch.targets))
            if name not in self.gated:
                return None
            return (args[0] * self._gate(name, module, args[0], batch.size), *args[1:])

        return hear

    def _measure(self, name: str, module: nn.Module, x: Tensor) -> None:
        if self.moments and x.numel():
            new = moments_of(x, module)
            self.inputs[name] = self.inputs[name].merged(new) if name in self.inputs else new
        if self.patches and x.numel():
            patches = patches_of(x, module)
            if patches is not None:
                self.products[name] = self.products[name].merged(patches) if name in self.products else patches

    def _gate(self, name: str, module: nn.Module, x: Tensor, samples: int) -> Tensor:
        if len(x) % samples:
            raise BadInputError(
                f"layer of {name}: input {tuple(x.shape)} for {samples} samples; samples must come first to be told "
                "apart: choose a criterion that does not look at single samples"
            )
        is_conv = isinstance(module, _ConvNd)
        gate = torch.ones(samples, x.shape[1 if is_conv else -1], dtype=x.dtype, device=x.device, requires_grad=True)
        self.gates[name].append(gate)
        rows = gate.repeat_interleave(len(x) // samples, 0)  # windows of one image stand side by side
        inner = (1,) * (x.ndim - 2)
        return rows.reshape(*rows.shape, *inner) if is_conv else rows.reshape(len(rows), *inner, -1)

    def is_transposed(self, name: str) -> bool:
        """Whether the weight is laid out (C_in, C_out / groups, …)."""
        return isinstance(self.modules[name], _ConvTransposeNd)


@dataclass(frozen=True)
class ForwardPass:
    """One batch after its forward pass: weights are leaves of the graph, by parameter."""

    leaves: Mapping[nn.Parameter, Tensor]
    output: Tree
    targets: Tree
    samples: int

    @classmethod
    def run(cls, model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Batch, taps: Taps) -> "ForwardPass":
        """Run the model in eval mode on detached leaves, so that its ``.grad`` and buffers stay as they are."""
        leaves = {p: channels_first(p.detach()).requires_grad_() for p in parameters.values()}
        batch = batch.to(next(iter(leaves)).device)
        with evaluating(model), torch.enable_grad(), taps.listening(batch):
            output = called(model, replaced(parameters, leaves), batch)
        return cls(leaves, output, batch.targets, batch.size)


def called(model: nn.Module, tensors: Mapping[str, Tensor], batch: Batch) -> Tree:
    """Return what the model gives for a batch with some of its tensors replaced, in channels-first order."""
    batch = batch.map(channels_first)
    return functional_call(model, dict(tensors), batch.args, dict(batch.kwargs))


def replaced(parameters: Mapping[str, nn.Parameter], leaves: Mapping[nn.Parameter, Tensor]) -> dict[str, Tensor]:
    """Leaves by name, one name each, also for tied weights: ``functional_call`` ties them again."""
    name_of = {parameter: name for name, parameter in parameters.items()}
    return {name_of[parameter]: leaf for parameter, leaf in leaves.items()}


def mean_gradients(ran: ForwardPass, parameters: Mapping[str, nn.Parameter], loss: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss by every weight, by name; zero where the loss does not reach. The graph is kept."""
    leaves = list(ran.leaves.values())
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    gradient_of = dict(zip(ran.leaves, gradients, strict=True))
    return {name: gradient_of[parameter] for name, parameter in parameters.items()}


def sample_gates(samples: int, taps: Taps, weights: Mapping[str, Tensor], mean_loss: Tensor) -> dict[str, Tensor]:
    """Spread s_nc evenly over the weights that read the channel: (N, …) broadcastable to (N, *weight)."""
    gates = [gate for calls in taps.gates.values() for gate in calls]
    total = mean_loss * samples
    derivatives = iter(torch.autograd.grad(total, gates, retain_graph=True, allow_unused=True, materialize_grads=True))
    spread = {}
    for name, calls in taps.gates.items():
        each = torch.stack([next(derivatives) for _ in calls]).sum(0).double()  # (N, C_in)
        share = each * (each.shape[1] / weights[name].numel())
        spread[name] = aligned(share, weights[name], taps.is_transposed(name))
    return spread


@runtime_checkable
class DrawsTargets(Protocol):
    """A loss that knows the distribution of the targets: a task."""

    def draw(self, output: Any, targets: Any, generator: torch.Generator, /) -> Any:
        """Targets drawn from the model's own prediction."""


def drawn_targets(loss_fn: LossFunction, output: Any, target: Tensor, generator: torch.Generator) -> Tensor:
    """Targets from the model's own distribution.

    A task draws them itself. For a plain function they are softmax classes, or outputs with unit normal noise.

    Raises:
        BadInputError: a task whose loss is that of no distribution.
    """
    if isinstance(loss_fn, DrawsTargets):
        return loss_fn.draw(output, target, generator)
    scores = first_tensor(output).detach()
    if target.is_floating_point():
        noise = torch.randn(scores.shape, generator=generator, dtype=scores.dtype)
        return (scores + noise.to(scores.device)).reshape(target.shape)
    return drawn_classes(scores.flatten(0, -2), target.flatten(), _NO_TARGET, generator).reshape(target.shape)


def drawn_classes(logits: Tensor, ids: Tensor, ignored: int, generator: torch.Generator) -> Tensor:
    """Classes (P,) drawn from softmax(logits), (P, C), on the CPU; where ``ids`` (P,) are ``ignored`` they stay."""
    chances = torch.softmax(logits.detach().double().cpu(), -1)
    drawn = torch.multinomial(chances, 1, generator=generator).squeeze(-1).to(ids.device)
    return torch.where(ids == ignored, ids, drawn)


def readers(trace: Trace) -> set[str]:
    """Names of the weights that read the channels of some group and mix them."""
    return {
        part.tensor
        for parts in trace.slices.values()
        for part in parts
        if part.side is Side.IN and not trace.network.layers[trace.network.layer_index[part.layer]].is_depthwise
    }


def _counted(x: Tensor, target: Tree) -> Tensor:
    """Leave out the tokens (B, T, C) that have no target: padding."""
    if not isinstance(target, Tensor):
        return x
    if target.ndim == 2 and not target.is_floating_point() and x.ndim == 3 and x.shape[:2] == target.shape:
        return x[target != _NO_TARGET]
    return x
