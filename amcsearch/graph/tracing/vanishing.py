"""Groups that may keep no channels: those whose readers feed a residual branch, found by structure and by experiment.

With all channels of a group masked, a layer that reads it alone writes its bias, a constant. The group can vanish if

- every layer that reads it is a convolution or linear layer that reads nothing else, and every layer that writes it
  writes nothing else, so that whole modules can be replaced;
- the constant meets what still depends on the sample before any output of the network does, and is not put beside it
  (a concatenation would hand constant channels to whatever reads them). Without a shortcut, everything behind the
  group would be constant; with one, the network goes on with the shortcut;
- so it is with every other group that can vanish gone as well;
- removing the branch computes what masking it does, alone and beside other groups of which half is gone.

Which results do not depend on the sample is followed in one run for all groups at once: every storage has a set of
groups, those without which it is constant. A result's set is the intersection of its operands'; the readers of a group
add it. Parameters are constant without any group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from amcsearch.core import ChannelGroup, Execution, LayerKind, LayerSpec, Side, described
from amcsearch.graph.batch import Batch
from amcsearch.graph.modes import unfused
from amcsearch.graph.outputs import output_tensors, tensors_in
from amcsearch.graph.slices import Kept, Trace, Vanishing
from amcsearch.graph.tracing.experiments import FailedRunError, Runs, difference, lively, some_units
from amcsearch.graph.tracing.layer_types import layer_type
from amcsearch.graph.tracing.operations import OperationMode

__all__ = ["vanishable"]

_ALWAYS: Final = -1  # every bit: constant whatever is gone
_FORMS: Final = ((False, False), (False, True), (True, False), (True, True))
"""Whether a unit of zeros flows through the branch, and whether its constant is spread; those that cost least first."""

Differs = Callable[[Trace, Kept], str]
"""Says how removing differs from masking, empty if it does not."""


def vanishable(model: nn.Module, trace: Trace, modules: Mapping[str, str], runs: Runs) -> Trace:
    """Return the trace with the groups marked that can vanish.

    Args:
        model: in eval mode; its layers are those of ``modules``, layer → path of its module.
        trace: of the model, verified.
        modules: of every layer.
        runs: what a smaller network is checked on.
    """
    batch = runs.batch
    candidates = {}
    for group in trace.network.groups:
        if (candidate := _candidate(model, trace, group, modules)) is not None:
            candidates[group.name] = candidate
    residual, behind = _residual(model, batch, {name: each.branch for name, each in candidates.items()})
    for name, idle in _idle(model, batch, {name: candidates[name].branch for name in residual}).items():
        branch = replace(candidates[name].branch, idle=idle, spread=name in behind)
        candidates[name] = replace(candidates[name], branch=branch)
    if not residual:
        return trace
    search = _Search(trace, modules, candidates, _experiment(model, runs))
    if not any(search.add_all(residual, form) for form in _FORMS):
        for form in _FORMS:
            search.add([name for name in residual if name not in search.accepted], form)
    marked = search.trace()
    execution = _where_vanishing(marked.network.execution, marked.vanishing)
    return replace(marked, network=replace(marked.network, execution=execution))


def _where_vanishing(execution: Execution, branches: Mapping[str, Vanishing]) -> Execution:
    """Return what is live when, also where the branches are gone."""
    modules = [moment.rpartition(".")[0] for moment in execution.moments]
    readers = {
        name: [moment for moment, path in enumerate(modules) if path in branch.readers]
        for name, branch in branches.items()
    }
    return execution.where_vanishing(readers)


def _experiment(model: nn.Module, runs: Runs) -> Differs:
    copy = lively(model)

    def differs(trace: Trace, kept: Kept) -> str:
        try:
            return difference(copy, trace, kept, runs)
        except FailedRunError as error:
            return f"the smaller network does not run: {error.__cause__}"
        except Exception as error:  # as for a group that was written down wrongly
            return f"cannot be checked: {described(error)}"

    return differs


@dataclass(frozen=True)
class _Candidate:
    """The modules of a branch; ``sliced``: it has tensors outside them, which only code for no channels can do without.

    ``unit``: channels of zeros where code does not run on none.
    """

    branch: Vanishing
    sliced: bool
    unit: int


def _candidate(model: nn.Module, trace: Trace, group: ChannelGroup, modules: Mapping[str, str]) -> _Candidate | None:
    """Return the modules of a group, None where some layer of it does something else as well."""
    lost: dict[str, dict[Side, int]] = {}
    for coupling in group.couplings:
        width = group.channels * coupling.factor // coupling.removed
        sides = lost.setdefault(coupling.layer, {})
        sides[coupling.side] = sides.get(coupling.side, 0) + width
    roles: dict[str, dict[str, None]] = {"reader": {}, "writer": {}, "norm": {}, "sliced": {}}
    known = dict(model.named_modules(remove_duplicate=False))
    for layer, sides in lost.items():
        spec = trace.network.layers[trace.network.layer_index[layer]]
        role = _role(spec, sides, known.get(modules[layer]))
        if not role:
            return None
        roles[role][modules[layer]] = None
    readers, writers, norms = (tuple(roles[role]) for role in ("reader", "writer", "norm"))
    if not readers:
        return None
    return _Candidate(Vanishing(readers, writers, norms), bool(roles["sliced"]), group.unit)


def _role(spec: LayerSpec, sides: Mapping[Side, int], module: nn.Module | None) -> str:
    """What a layer is to a group of which it loses these widths; empty where it is not the group's alone."""
    widths = {Side.IN: spec.in_channels, Side.OUT: spec.out_channels}
    if any(width != widths[side] for side, width in sides.items() if spec.kind is not LayerKind.PARAMETER):
        return ""
    is_layer, kind = isinstance(module, nn.Linear | _ConvNd), layer_type(module)
    if Side.OUT not in sides:
        return "reader" if is_layer else ""
    if is_layer:
        return "writer"
    if kind is not None:
        return "norm" if kind.passes else ""
    return "" if spec.kind is LayerKind.ATTENTION and Side.IN not in sides else "sliced"


class _Search:
    """Groups that were accepted, each with the first form of its branch that passes."""

    def __init__(
        self,
        trace: Trace,
        modules: Mapping[str, str],
        candidates: Mapping[str, _Candidate],
        differs: Differs,
    ) -> None:
        self.modules = modules
        rng = np.random.default_rng(0)
        self.some = {name: some_units(units, rng, 0) for name, units in trace.units.items()}
        self.dense, self.candidates, self.differs = trace, candidates, differs
        self.accepted: dict[str, Vanishing] = {}

    def trace(self, more: Mapping[str, Vanishing] | None = None) -> Trace:
        """Return the trace with the accepted groups marked, and ``more``."""
        vanishing = {**self.accepted, **(more or {})}
        groups = tuple(
            replace(group, can_vanish=True, idle_layers=self._layers_of(vanishing[group.name].idle))
            if group.name in vanishing
            else group
            for group in self.dense.network.groups
        )
        network = replace(self.dense.network, groups=groups)
        ordered = {group.name: vanishing[group.name] for group in groups if group.can_vanish}
        return replace(self.dense, network=network, vanishing=ordered)

    def _layers_of(self, paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.dense.network.layers if self.modules[layer.name] in paths)

    def add_all(self, names: Sequence[str], form: tuple[bool, bool]) -> bool:
        """Accept groups if all pass together in a form; where a form cannot be had, in one that costs more."""
        with_zeros, spread = form
        more = {}
        for name in names:
            candidate = self.candidates[name]
            width = candidate.unit if with_zeros and not candidate.sliced else 0
            more[name] = replace(candidate.branch, width=width, spread=spread or candidate.branch.spread)
        passes = self._passes(more)
        self.accepted |= more if passes else {}
        return passes

    def add(self, names: Sequence[str], form: tuple[bool, bool]) -> None:
        """Accept those groups that pass in a form; halves are tried where all together do not."""
        if names and not self.add_all(names, form) and len(names) > 1:
            middle = len(names) // 2
            self.add(names[:middle], form)
            self.add(names[middle:], form)

    def _passes(self, more: Mapping[str, Vanishing]) -> bool:
        trace = self.trace(more)
        gone = dict.fromkeys(trace.vanishing, np.zeros(0, dtype=np.int64))
        alone = {name: gone[name] for name in more}
        return not (self.differs(trace, alone) or self.differs(trace, {**self.some, **gone}))


def _residual(model: nn.Module, batch: Batch, branches: Mapping[str, Vanishing]) -> tuple[list[str], set[str]]:
    """Return the groups without which, all together, no output of the network becomes constant.

    And those whose constant goes through more layers of the branch (the second convolution of three): it must be
    spread, so that they compute what they would.
    """
    bits = {name: 1 << i for i, name in enumerate(branches)}
    members = {name: {*b.readers, *b.writers} for name, b in branches.items()}
    wrong, read = _constant_without(model, batch, {bits[name]: b.readers for name, b in branches.items()})
    names = [name for name in branches if not wrong & bits[name]]
    behind = {
        name for name in names if any(bits[name] & gone for path, gone in read.items() if path not in members[name])
    }

    def stay_together(together: Sequence[str]) -> bool:
        readers = [path for name in together for path in branches[name].readers]
        return not _constant_without(model, batch, {1: readers})[0] & 1

    if not names or stay_together(names):
        return names, behind
    chosen: list[str] = []
    for name in names:
        if stay_together([*chosen, name]):
            chosen.append(name)
    return chosen, behind


def _constant_without(
    model: nn.Module, batch: Batch, readers: Mapping[int, Sequence[str]]
) -> tuple[int, dict[str, int]]:
    """Return the bits (each of some readers) without which an output is constant, or a constant is put beside others.

    And for each convolution and linear layer, by its path, the bits without which what it reads is constant.
    """
    follower = _Constancy()
    with _hooked(model, readers, follower), unfused(), torch.no_grad(), follower:
        for tensor in batch.inputs.values():
            follower.put(tensor, 0)
        output = batch.through(model)
    wrong = follower.beside
    for tensor in output_tensors(output):
        wrong |= follower.of(tensor)  # a constant output, or one that could not be followed: nothing may vanish
    return wrong, follower.read


def _idle(model: nn.Module, batch: Batch, branches: Mapping[str, Vanishing]) -> dict[str, tuple[str, ...]]:
    """Return for each group the layers outside its branch that only the branch reads, by paths."""
    log = _Reads()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(lambda *_, path=path: log.running.append(path)).remove)
            stack.callback(module.register_forward_hook(lambda *_: log.left()).remove)
        for context in (unfused(), torch.no_grad(), log):
            stack.enter_context(context)
        outputs = frozenset(map(_storage, output_tensors(batch.through(model))))
    layers = {path for path, module in model.named_modules() if layer_type(module) is not None}
    used = layers & log.used(outputs, ())
    idle = {}
    for name, branch in branches.items():
        members = {*branch.readers, *branch.writers, *branch.norms}
        still_used = log.used(outputs, branch.readers)
        idle[name] = tuple(path for path in log.order if path in used - members and path not in still_used)
    return idle


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Reads(OperationMode):
    """Operations in order, each with the module that ran it and the storages that it read and wrote."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.running: list[str] = []
        self._operations: list[tuple[str, frozenset[int], frozenset[int]]] = []
        self._held: list[Tensor] = []  # whose storages' numbers must not be used again

    def left(self) -> None:
        """Note that the innermost module has returned."""
        self.running.pop()

    @property
    def order(self) -> list[str]:
        """Paths of the modules that ran operations, in order."""
        return list(dict.fromkeys(path for path, _, _ in self._operations))

    def used(self, outputs: frozenset[int], constants: Sequence[str]) -> set[str]:
        """Return the modules that ``outputs`` depend on, where some write constants whatever they read."""
        live, used = set(outputs), set()
        for path, read, written in reversed(self._operations):
            if written & live:
                used.add(path)
                live |= frozenset() if path in constants else read
        return used

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = list(tensors_in([*args, *(kwargs or {}).values()])), list(tensors_in([result]))
        self._held += written
        path = self.running[-1] if self.running else ""
        self._operations.append((path, frozenset(map(_storage, read)), frozenset(map(_storage, written))))
        return result


@contextmanager
def _hooked(model: nn.Module, readers: Mapping[int, Sequence[str]], follower: "_Constancy") -> Iterator[None]:
    """Add their bit to what the readers write."""
    bits: dict[str, int] = {}
    for bit, paths in readers.items():
        for path in paths:
            bits[path] = bits.get(path, 0) | bit
    with ExitStack() as stack:
        for path, bit in bits.items():

            def leave(_: nn.Module, __: Any, output: Any, bit: int = bit) -> None:
                for tensor in tensors_in([output]):
                    follower.put(tensor, follower.of(tensor) | bit)

            stack.callback(model.get_submodule(path).register_forward_hook(leave).remove)
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | _ConvNd):

                def enter(_: nn.Module, inputs: Any, path: str = path) -> None:
                    for tensor in tensors_in(inputs):
                        follower.read[path] = follower.read.get(path, 0) | max(follower.of(tensor), 0)

                stack.callback(module.register_forward_pre_hook(enter).remove)
        yield


class _Constancy(OperationMode):
    """Follows which results are constant without which groups, by storage.

    ``beside``: of what is concatenated with others; ``read``: of what layers read, by path.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.beside = 0
        self.read: dict[str, int] = {}
        self._sets: dict[int, int] = {}
        self._held: list[Tensor] = []  # whose storages' numbers must not be used again

    def of(self, tensor: Tensor) -> int:
        """Return the set of a tensor, as bits."""
        return self._sets.get(_storage(tensor), _ALWAYS)

    def put(self, tensor: Tensor, bits: int) -> None:
        """Note the set of a tensor."""
        self._sets[_storage(tensor)] = bits
        self._held.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sets = [self.of(tensor) for tensor in tensors_in([*args, *(kwargs or {}).values()])]
        result = func(*args, **(kwargs or {}))
        bits = _ALWAYS
        for each in sets:
            bits &= each
        if func.overloadpacket.__name__ in ("cat", "stack"):
            for each in sets:
                self.beside |= 0 if each == _ALWAYS else each & ~bits
        for tensor in tensors_in([result]):
            self.put(tensor, bits)
        return result
