"""What to measure of networks to make a table: which pruned variants, for what (``roles``), and in which order.

Order is priority: a run that is cut short has seen some of all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from amcsearch.config import LEAST_VARIANTS
from amcsearch.core import BadInputError, NetworkSpec, PruningPolicy
from amcsearch.costs import LatencyModel
from amcsearch.graph import Batch, Trace, as_batch, remove
from amcsearch.measure.build.attribution import original_owners
from amcsearch.measure.kit.kit import REFERENCE, KitModel, KitPlan
from amcsearch.measure.plan.network_record import network_record
from amcsearch.measure.plan.roles import ANCHOR, BUILDING, HELD_OUT, LOWERED, cast
from amcsearch.measure.plan.variants import random_kept
from amcsearch.runtime import OPSET, InputSpec, OnnxSettings, Runtime, Signature, converted, exported, signature_of

__all__ = ["MeasuredSubject", "held_out_count", "measurement_plan"]

HELD_OUT_SHARE: Final = 3  # one held-out variant for so many that build the table

Progress = Callable[[float, str], None]
Bind = Callable[[NetworkSpec], LatencyModel]


@dataclass(frozen=True)
class MeasuredSubject:
    """A network to be measured: its name in the table, the dense module, its groups, and an example of one sample.

    ``high`` bounds the numbers of integer inputs, all of them or each by its path; they are drawn from [0, high).
    """

    name: str
    model: nn.Module
    trace: Trace
    example: Batch | Tensor
    high: int | Mapping[str, int] | None = None


def held_out_count(variants: int) -> int:
    """How many variants check a table that so many build."""
    return max(LEAST_VARIANTS, variants // HELD_OUT_SHARE)


def _predicting(bind: Bind | None, network: NetworkSpec) -> LatencyModel | None:
    """The model of the network, None where it cannot predict it."""
    if bind is None:
        return None
    model = bind(network)
    try:
        model.predict(network.layers)
    except BadInputError:
        return None
    return model


def _batched(example: Batch | Tensor, batch: int) -> Batch:
    return as_batch(example).chosen([0] * batch)


@dataclass(frozen=True)
class _Export:
    """How a network becomes the file of a call: ONNX in a data type, or the file of another runtime.

    ``signature`` is the dense network's, which pruned ones share, once that could be exported.
    """

    x: Batch
    dtype: str
    settings: OnnxSettings
    runtime: Runtime | None
    signature: Signature | None = None

    def __call__(self, model: nn.Module) -> bytes:
        if self.runtime is not None:
            return self.runtime.exported(model, self.x, self.settings)
        return converted(exported(model, self.x, self.settings, self.signature), self.dtype, [self.x])


def _reference(subject: MeasuredSubject, export: _Export) -> tuple[KitModel, dict[str, Any]]:
    """The dense model, and what the plan says of the network; names are those of the model before it was converted."""
    network, owners = subject.trace.network, {}
    if export.runtime is None:
        dense = exported(subject.model, export.x, export.settings)
        owners = original_owners(onnx.load_from_string(dense).graph, [layer.name for layer in network.layers])
        model = converted(dense, export.dtype, [export.x])
    else:  # whole runs alone: no node is looked at
        model = export(subject.model)
    keeps_weights, policy = export.runtime is not None, dict(network.dense)
    reference = KitModel(f"{subject.name}/dense", model, subject.name, REFERENCE, policy, keeps_weights=keeps_weights)
    return reference, {"network": network_record(network), "owners": owners}


def _models(
    subject: MeasuredSubject, chosen: Sequence[tuple[str, PruningPolicy]], export: _Export, rng: np.random.Generator
) -> Iterator[KitModel]:
    """Remove random channels as each policy says (latency depends on how many alone), and export.

    One input calibrates an int8 model well enough to be timed: integers take as long whatever they are.
    """
    for number, (role, policy) in enumerate(chosen):
        pruned = remove(subject.model, subject.trace, random_kept(subject.trace, policy, rng))
        name, runs = f"{subject.name}/{number:03d}", role != LOWERED
        yield KitModel(
            *(name, export(pruned), subject.name, role, dict(policy)),
            timed=runs,
            profiled=runs and role != HELD_OUT,
            keeps_weights=export.runtime is not None,
        )


def measurement_plan(
    subjects: Sequence[MeasuredSubject],
    *,
    variants: int = 72,
    held_out: int | None = None,
    anchors: int = 0,
    lowered: int = 0,
    batch: int = 1,
    dtype: str = "float32",
    opset: int = OPSET,
    passes: int = 3,
    seed: int = 0,
    bind: Bind | None = None,
    progress: Progress | None = None,
    runtime: Runtime | None = None,
) -> KitPlan:
    """Choose variants of networks, prune and export them.

    Args:
        subjects: the networks.
        variants: of each that build the table, 0 for none.
        held_out: of each that check it; a third as many if None.
        anchors: of each, whole runs that place a table which is there already.
        lowered: of each, variants whose optimised graph alone is read.
        batch: inputs a call.
        dtype: that the models compute in, float32 or int8; their inputs stay what they are.
        opset: of the exported models.
        passes: independent measurements of each model, spread over the run.
        seed: of all choices.
        bind: ``bind`` of a table of this device: variants are then chosen where its model is least sure.
        progress: called with the share done and what is being done.
        runtime: whose files are measured, on this machine alone; None is ONNX Runtime.

    Raises:
        BadInputError: counts out of range, two networks of one name, or a module that cannot be exported or computed
            in the data type.
    """
    _check_counts(variants, held_out or 0, anchors, lowered, batch)
    _check_names(subjects)
    models: list[tuple[float, KitModel]] = []
    settings = OnnxSettings(opset)
    info: dict[str, Any] = {}
    for number, subject in enumerate(subjects):
        rng = np.random.default_rng([seed, number])
        network = subject.trace.network
        export = _Export(_batched(subject.example, batch), dtype, settings, runtime)
        reference, info[subject.name] = _reference(subject, export)
        if runtime is None:
            export = replace(export, signature=signature_of(subject.model, export.x))
        kept_out = held_out_count(variants) if held_out is None else held_out
        wanted = {BUILDING: variants, HELD_OUT: kept_out, ANCHOR: anchors, LOWERED: lowered}
        chosen = cast(network, wanted, rng, _predicting(bind, network))
        models.append((-1.0, reference))
        for i, model in enumerate(_models(subject, chosen, export, rng)):
            models.append((i / len(chosen), model))
            if progress is not None:
                progress((number + (i + 1) / len(chosen)) / len(subjects), f"preparing variants of {subject.name}")
    ordered = tuple(model for _, model in sorted(models, key=lambda place: place[0]))
    inputs = {s.name: _inputs_of(s, batch) for s in subjects}
    empty = None if runtime is None else runtime.exported(nn.ReLU(), torch.zeros(1, 1), settings)
    return KitPlan(ordered, batch, dtype, inputs, passes=passes, info={"networks": info}, seed=seed, empty=empty)


def _check_counts(variants: int, held_out: int, anchors: int, lowered: int, batch: int) -> None:
    if 0 < variants < LEAST_VARIANTS or min(variants, anchors, lowered, held_out) < 0 or batch < 1:
        raise BadInputError(
            f"latency table: variants = {variants} (0, or at least {LEAST_VARIANTS}), anchors = {anchors}, "
            f"lowered = {lowered}, held out = {held_out} (at least 0), batch = {batch} (at least 1)"
        )


def _check_names(subjects: Sequence[MeasuredSubject]) -> None:
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise BadInputError(f"latency table: the networks {sorted(names)} must have different names")


def _inputs_of(subject: MeasuredSubject, batch: int) -> InputSpec | tuple[InputSpec, ...]:
    specs = []
    for path, tensor in _batched(subject.example, batch).inputs.items():
        high = subject.high.get(path) if isinstance(subject.high, Mapping) else subject.high
        if tensor.is_floating_point():
            high = None
        elif high is None:
            high = 2 if tensor.dtype == torch.bool else int(tensor.max()) + 1
        specs.append(InputSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), high))
    return specs[0] if len(specs) == 1 else tuple(specs)
