"""Check of channel groups by experiment: removing channels computes what masking them does, in the shapes predicted.

All groups are checked at once, twice: a random share of the units of each is removed, then a half. Only where that
fails are the groups at fault looked for: those with layers in the module whose code failed, and where the outputs
differ, by halves: n groups of which k are wrong take about 2 k log2(n) runs. The model's vectors (norms, biases, layer
scales) are drawn at random in a copy, because a vector of zeros would make a wrong removal look right.

A group that fails alone gets three more chances. Integers of plain code that equal its width fall with it. And it is
joined with the groups of as many channels that read it or are read by it: code that takes the width of its input for
that of its heads (``reshape(n, t, heads, c // heads)``) or of a part (``split([c, c, levels])``) keeps working as long
as all of them lose as many channels. And a tensor that its modules are given (slopes of positions that are computed
from the number of heads) keeps its width, and is cut where it is given.
"""

import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import ChannelGroup, LayerKind, LayerSpec, NetworkSpec, PruningPolicy, Side, Stored, described
from amcsearch.graph.batch import Batch, tensors_of_tree
from amcsearch.graph.masks import masked
from amcsearch.graph.removal import duplicate, remove
from amcsearch.graph.slices import Kept, Trace, joined
from amcsearch.graph.tracing.branches import Decisions, OtherSide
from amcsearch.graph.tracing.grouping import OUTPUT
from amcsearch.graph.tracing.recorder import observe
from amcsearch.graph.tracing.width_attributes import stated, with_arguments

__all__ = ["FailedRunError", "Runs", "difference", "lively", "some_units", "verified"]

_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the largest output; structural mistakes are of order 1."""
_DRAWS: Final = 2
_JOINTS: Final = 8  # joint groups that are tried for one that fails
_SEED: Final = 0

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """What a smaller network is checked on: one sample, also on other sides of its branches; in training mode others.

    ``training`` is None where nothing runs in training mode only.
    """

    batch: Batch
    training: Batch | None = None
    sides: tuple[OtherSide, ...] = ()


def verified(model: nn.Module, trace: Trace, runs: Runs) -> Trace:
    """Return the trace without the groups whose removal differs from their masking, or changes an output's shape."""
    if not trace.network.groups:
        return trace
    check = _Check(lively(model), trace, runs)
    check.add([group.name for group in trace.network.groups])
    return check.trace.without(check.lost)


class _Check:
    """Groups that pass together, and those that were lost, with the reason."""

    def __init__(self, model: nn.Module, trace: Trace, runs: Runs) -> None:
        self.model, self.trace, self.runs = model, trace, runs
        rng = np.random.default_rng(_SEED)
        self.draws = [{name: some_units(units, rng, i) for name, units in trace.units.items()} for i in range(_DRAWS)]
        self.accepted: list[str] = []
        self.failed: dict[str, str] = {}  # on top of those accepted, with the reason
        self.lost: dict[str, str] = {}

    def add(self, names: Sequence[str]) -> None:
        """Accept these groups if they pass on top of those accepted; else look for those at fault.

        They are looked for in the module whose code failed, and where that says nothing, in halves.
        """
        names = self._open(names)
        if not names:
            return
        failure = self._failure([*self.accepted, *names]) if len(names) > 1 else None
        if len(names) > 1 and failure is None:
            self.accepted += names
            return
        suspects = self._suspects(names, failure)
        if len(names) == 1 or suspects:
            for name in suspects or names:
                self._try(name)
            self.add(names if suspects else [])
        else:
            middle = len(names) // 2
            self.add(names[:middle])
            self.add(names[middle:])

    def _open(self, names: Sequence[str]) -> list[str]:
        """Those of some groups that are there and undecided."""
        return [name for name in names if name in self.trace.units and name not in {*self.accepted, *self.lost}]

    def _try(self, name: str) -> None:
        """Decide about one group."""
        ways = (self._passes, self._passes_joined, self._passes_given)
        if self._open([name]) and not any(passes(name) for passes in ways):
            alone, reason = self._failure([name]), self.failed[name]
            self.lost[name] = alone.reason if alone is not None else f"clashes with another group: {reason}"

    def _suspects(self, names: Sequence[str], failure: "_Failure | None") -> list[str]:
        """The groups of fewest layers around the code that failed: those of the innermost module that has any."""
        for path in failure.modules if failure is not None else ():
            groups = [group for group in self.trace.network.groups if group.name in names]
            inside = [g.name for g in groups if any(c.layer.startswith(f"{path}.") for c in g.couplings)]
            if path and inside:
                return inside if len(inside) <= max(2, len(names) // 4) else []
        return []

    def _passes(self, name: str) -> bool:
        """Accept a group if it passes, as it is or once integers of plain code that equal its width fall with it."""
        if name in self.failed:
            return False
        before, names = self.trace, [*self.accepted, name]
        first = failure = self._failure(names)
        while failure is not None and (attributes := stated(self.model, self.trace, name, failure.modules)):
            self.trace = replace(self.trace, attributes=(*self.trace.attributes, *attributes))
            failure = self._failure(names)
        if failure is not None and (attributes := stated(self.model, before, name, None)):
            self.trace = replace(before, attributes=(*before.attributes, *attributes))
            failure = self._failure(names)
        if failure is None:
            self.accepted.append(name)
            return True
        assert first is not None
        self.trace, self.failed[name] = before, first.reason
        return False

    def _passes_joined(self, name: str) -> bool:
        """Accept a group as one with those that fail too and have as many channels on the other side of a layer.

        Groups that begin in layers of the same name (the queries of every block) are joined together or not at all, and
        the first is tried for all of them.
        """
        roles: dict[str, list[str]] = {}
        for partner in self._open(_partners(self.trace.network, name)):
            roles.setdefault(partner.rpartition(".")[2], []).append(partner)
        roles = {role: partners for role, partners in roles.items() if not self._passes(partners[0])}
        choices = (c for size in range(len(roles), 0, -1) for c in combinations(roles, size))
        for choice in islice(choices, _JOINTS):
            if self._passes_as_one([name, *(partner for role in choice for partner in roles[role])]):
                return True
        return False

    def _passes_given(self, name: str) -> bool:
        """Accept a group if it passes once tensors that its modules are given at full width are cut there."""
        before = self.trace
        for choice in islice(with_arguments(self.model, before, name, self.runs.batch), _JOINTS):
            self.trace = choice
            if self._failure([*self.accepted, name]) is None:
                self.accepted.append(name)
                return True
        self.trace = before
        return False

    def _passes_as_one(self, names: Sequence[str]) -> bool:
        before, whole = self.trace, joined(self.trace, names)
        if whole is None:
            return False
        first = next(name for name in whole.units if name in names)
        why = self.failed.pop(first)
        self.trace = whole
        self._draw(first)
        if self._passes(first):
            return True
        self.trace, self.failed[first] = before, why
        self._draw(first)
        return False

    def _draw(self, name: str) -> None:
        rng = np.random.default_rng(_SEED)
        for i, draw in enumerate(self.draws):
            draw[name] = some_units(self.trace.units[name], rng, i)

    def _failure(self, names: Sequence[str]) -> "_Failure | None":
        for draw in self.draws:
            kept = {name: draw[name] for name in names}
            try:
                reason = difference(self.model, self.trace, kept, self.runs)
            except FailedRunError as error:
                text = " ".join(str(error.__cause__).split())[:120]
                modules = _modules_of(error.small, error.__cause__)
                return _Failure(f"the smaller network does not run: {text}", modules)
            except Exception as error:  # whatever a group that was written down wrongly leads to costs that group
                return _Failure(f"cannot be checked: {described(error)}")
            if reason:
                return _Failure(reason)
        return None


@dataclass(frozen=True)
class _Failure:
    """Why groups do not pass; ``modules``: those whose code ran when it failed, the innermost first."""

    reason: str
    modules: tuple[str, ...] = ()


class FailedRunError(Exception):
    """The smaller network raised; ``__cause__`` says what."""

    def __init__(self, small: nn.Module) -> None:
        super().__init__()
        self.small = small


def _modules_of(model: nn.Module, error: BaseException | None) -> tuple[str, ...]:
    """Names of the modules in whose code an error was raised, the innermost first."""
    names = {id(module): name for name, module in model.named_modules()}
    frames = traceback.walk_tb(error.__traceback__ if error is not None else None)
    running = [names[id(frame.f_locals["self"])] for frame, _ in frames if id(frame.f_locals.get("self")) in names]
    return tuple(dict.fromkeys(reversed(running)))


def _partners(network: NetworkSpec, name: str) -> list[str]:
    """Groups of as many channels that write what layers make of this group, or that such layers read."""
    sides: dict[tuple[str, Side], list[ChannelGroup]] = defaultdict(list)
    for group in network.groups:
        for coupling in group.couplings:
            sides[coupling.layer, coupling.side].append(group)
    group = next(group for group in network.groups if group.name == name)
    across = [
        other
        for coupling in group.couplings
        for other in sides[coupling.layer, Side.IN if coupling.side is Side.OUT else Side.OUT]
    ]
    names = {other.name for other in across if other.channels == group.channels} - {name}
    return [other.name for other in network.groups if other.name in names]


def some_units(units: NDArray[np.int64], rng: np.random.Generator, draw: int) -> NDArray[np.int64]:
    """Keep some of the units, never none, never all (groups have two or more).

    In the first draw a random share from a quarter to three quarters: were all groups halved, code that needs two of
    them to be equally wide would run. It is rounded as devices like it. In the second a half, rounded up. Not one unit
    of four or more: the products of a single head are recorded as those of no head.
    """
    count = len(units)
    step = next(size for size in (8, 4, 2, 1) if count >= 4 * size or size == 1)
    least, most = max(-(-count // (4 * step)), 2 if count > 3 and step == 1 else 1), (count - count // 4) // step
    n_keep = (count + 1) // 2 if draw else step * int(rng.integers(least, max(least, most) + 1))
    return np.sort(units[rng.permutation(count)[: min(n_keep, count - 1)]].ravel())


def lively(model: nn.Module) -> nn.Module:
    """Copy the model with its vectors drawn afresh, in eval mode."""
    twin = duplicate(model).eval()
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if tensor.is_floating_point() and (tensor.numel() == max(tensor.shape, default=1) or not tensor.any()):
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                centred = name.endswith(("bias", "running_mean")) or tensor.ndim > 1
                tensor.copy_(noise - 0.5 if centred else noise + 0.5)
    return twin


def difference(model: nn.Module, trace: Trace, kept: Kept, runs: Runs) -> str:
    """Say how removing differs from masking; empty if it does not.

    Raises:
        FailedRunError: the smaller network raised.
    """
    small = remove(model, trace, kept)
    try:
        observation = observe(small, runs.batch)
        on_sides = [_on_side(small, runs.batch, side) for side in runs.sides]
        if runs.training is not None:
            with torch.no_grad():
                runs.training.through(small.train())
    except Exception as error:
        raise FailedRunError(small) from error
    with masked(model, trace, kept):
        dense = observe(model, runs.batch)
        expected = [_on_side(model, runs.batch, side) for side in runs.sides]
    reason = _differ(dense.output, observation.output)
    for side, output, wanted in zip(runs.sides, on_sides, expected, strict=True):
        where = _differ(wanted, output)
        reason = reason or (f"on the other side of the branch at {side.place} {where}" if where else "")
    return reason or _unpredicted(trace.network, kept, dense.layers, observation.layers)


def _on_side(model: nn.Module, batch: Batch, side: OtherSide) -> object:
    """The output where a branch is taken on its other side."""
    with torch.no_grad(), Decisions(side):
        return batch.through(model)


def _differ(expected: object, output: object) -> str:
    """Say how the outputs of the smaller network differ from those expected."""
    wanted, outputs = _outputs(expected), _outputs(output)
    if [(n, t.shape) for n, t in outputs] != [(n, t.shape) for n, t in wanted]:
        return OUTPUT
    for (name, a), (_, b) in zip(wanted, outputs, strict=True):
        scale, gap = (float(x.abs().max()) if x.numel() else 0.0 for x in (a, a - b))
        if not gap <= _TOLERANCE.get(a.dtype, 1e-4) * max(scale, 1e-6):
            where = f" in {name}" if name else ""
            return (
                f"without its channels the output{where} is another than with zeros in them (by {gap:.3g}, outputs up "
                f"to {scale:.3g})"
            )
    return ""


def _unpredicted(network: NetworkSpec, kept: Kept, dense: Sequence[LayerSpec], small: Sequence[LayerSpec]) -> str:
    """Say which layers of the smaller network have other shapes than the masked network's predict; empty if none.

    What the numbers of a sample decide (which expert takes which token) may make the layers others than the trace's.
    """
    routed = [x.name for x in dense] != [x.name for x in network.layers]
    if not routed:
        layers = (replace(x, stored=known.stored) for x, known in zip(dense, network.layers, strict=True))
        network = NetworkSpec(tuple(layers), network.groups)
    policy = PruningPolicy({**network.dense, **{name: len(index) for name, index in kept.items()}})
    predicted = network.with_channels(policy).layers
    products, others = _apart(predicted)
    products_run, small = _apart(small)
    if products != products_run and not routed:
        return (
            f"the products of {sorted(set(products.items()) ^ set(products_run.items()))[0][0]!r} are not as predicted"
        )
    if routed:
        widths = {x.name: (x.in_channels, x.out_channels) for x in small}
        wrong = [x.name for x in others if widths.get(x.name, widths) not in (widths, (x.in_channels, x.out_channels))]
    else:
        wrong = [a.name for a, b in zip(others, small, strict=False) if _shape(a) != _shape(b)]
    if wrong or (len(others) != len(small) and not routed):
        return f"without its channels {', '.join(wrong[:3]) or 'its layers'} would have other shapes than expected"
    return ""


def _apart(layers: Sequence[LayerSpec]) -> tuple[Counter[str], list[LayerSpec]]:
    """Multiply-accumulates of products without a weight, by module, and the other layers.

    How such products are divided into layers depends on what is left: those of one head may be equal to others.
    """
    products, others = Counter[str](), []
    for layer in layers:
        module, _, name = layer.name.split("#")[0].rpartition(".")
        if name == "product" and not layer.has_weight:
            pairs = layer.in_channels * layer.out_channels // layer.conv_groups
            products[module] += pairs * layer.out_size[0] * layer.out_size[1]
        else:
            others.append(layer)
    return products, others


def _shape(layer: LayerSpec) -> LayerSpec:
    """The layer without its name (of a slice: its first row) and without the operations that follow it.

    Of a parameter only its size counts: where one channel is left, its dimension cannot be told. A norm inside each
    head runs at fewer positions once heads have left, and a batch norm of a constant at one.
    """
    if layer.kind in (LayerKind.LAYER_NORM, LayerKind.BATCH_NORM):
        layer = replace(layer, in_size=(1, 1), out_size=(1, 1))
    if layer.kind is LayerKind.PARAMETER:
        layer = replace(layer, in_channels=1, out_channels=layer.in_channels * layer.out_channels)
    return replace(layer, name="", steps=(), stored=Stored.ALL)


def _outputs(output: object) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in tensors_of_tree(output) if tensor.is_floating_point()]
