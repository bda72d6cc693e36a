"""Checks of the dense network before work is spent on it: what would make the delivered file another network.

A search judges the network in torch, in large batches, and delivers a file that ONNX Runtime runs in the device's
batch. The two are one network only if outputs are finite and do not change from call to call or with the other samples
of the batch, if the input stays as it was, and if the exporter follows the whole network. None of it depends on what is
pruned, and seldom on the weights. So the dense network is checked, with the weights that it was made with and again
when it is trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from amcsearch.config import Config
from amcsearch.core import ACCURACY, BadInputError, Evaluation, UserCode, counted, described
from amcsearch.graph import Batch, Batches, Tree, as_batch, evaluating, output_tensors
from amcsearch.runtime import (
    OUTPUTS,
    InBatches,
    OnnxModule,
    OnnxSettings,
    compare,
    exported,
    outputs_of,
    sample_axis,
    signature_of,
)
from amcsearch.training import DataSplits, Task, batches_of, fitting_batch_size, guess_on

__all__ = [
    "chance_warning",
    "check_export",
    "check_network",
    "check_parameters",
    "not_finite",
    "onnx_settings",
    "probes_of",
]

EVEN: Final = 40  # probes spread evenly over a split …
ANY_SIZE: Final = (
    "write its forward for any batch size: x.flatten(1) for x.view(1, -1), len(x) where it says 1, and no squeeze(0)"
)
EXTREME: Final = 6  # … and those with the largest and the smallest of each extreme


def check_network(config: Config, model: nn.Module, splits: DataSplits, probes: Batch) -> None:
    """Refuse a network that does not give finite outputs of its input alone.

    Outputs are checked on every sample that will be judged; the ``probes`` of ``probes_of``, or as many of them as go
    through the network at once, are run twice, and in batches of several sizes.

    Raises:
        BadInputError: a network of one sample alone, weights or outputs that are not finite, outputs that differ from
            call to call or with the batch, or an input that is changed in place; names the network.
    """
    name = _name(config, model)
    _check_weights(model, name)
    few = probes.chosen(_spread(probes.size, fitting_batch_size(probes)))
    with UserCode(name):
        first, second = _first_pass(model, few, name), _pass_that_keeps_input(model, few, name)
        for split in ("calibration", "search", "test"):
            _check_outputs(model, batches_of(getattr(splits, split), name=split), name, split)
        _check_repeats(model, few, (first, second), config.device.batch, name)


def check_parameters(config: Config, model: nn.Module, made: Mapping[str, Tensor]) -> None:
    """Refuse a network that has other parameters than those it was ``made`` with, now that it has run.

    Raises:
        BadInputError: ``forward`` adds, replaces or removes one; names it.
    """
    now = dict(model.named_parameters())
    for key in {**made, **now}:
        if made.get(key) is not now.get(key):
            does = "adds" if key not in made else "replaces" if key in now else "removes"
            raise BadInputError(
                f"{_name(config, model)} {does} the parameter {key} when it runs, so no training would reach it; make "
                "all parameters in __init__, and keep them"
            )


def check_export(config: Config, model: nn.Module, probes: Batch, example: Batch | Tensor, task: Task) -> None:
    """Refuse a network whose ONNX file, of the batch of ``example``, gives other outputs than torch on the ``probes``.

    Raises:
        BadInputError: a difference beyond the bounds of ``runtime.comparison``; batches of shapes that the file does
            not take; or as ``runtime.exported``.
    """
    settings = onnx_settings(config)
    with UserCode(_name(config, model)):
        signature = signature_of(model, example)
    _check_shapes(settings, as_batch(example), probes, signature.inputs)
    _check_types(model, as_batch(example), _name(config, model))
    file = OnnxModule(exported(model, example, settings), signature=signature)
    in_torch = InBatches(model, as_batch(example).size, signature)
    agreement = compare(in_torch, file, _calls(probes, as_batch(example).size), labels=task.is_argmax)
    if agreement.problem is not None:
        raise BadInputError(
            f"{_name(config, model)} is another network in its ONNX file, which {agreement.problem}; the exporter "
            "follows one side of a branch: write it with torch.where, and make nothing depend on being exported"
        )


def _check_types(model: nn.Module, example: Batch, name: str) -> None:
    """Refuse layers that compute in 16 bits: their ONNX file has no kernel for that, or rounds otherwise."""
    cast: list[tuple[str, torch.dtype]] = []

    def look(_module: nn.Module, _args: Tree, output: Tree, *, path: str) -> None:
        types = {tensor.dtype for tensor in output_tensors(output)} & {torch.float16, torch.bfloat16}
        cast.extend((path, dtype) for dtype in types)

    layers = [(path, module) for path, module in model.named_modules() if any(True for _ in module.parameters(False))]
    hooks = [module.register_forward_hook(partial(look, path=path)) for path, module in layers]
    try:
        with evaluating(model), torch.inference_mode():
            example.through(model)
    finally:
        for hook in hooks:
            hook.remove()
    if cast:
        path, dtype = cast[0]
        raise BadInputError(
            f"{name}: its layer {path} computes in {dtype}, expected torch.float32, the type of its weights; take "
            "torch.autocast and casts out of forward (recovery.finetune.precision trains in 16 bits)"
        )


def _calls(probes: Batch, size: int) -> Iterator[Batch]:
    """Cut the probes into whole calls of a file of that batch: outputs of all of them may take gigabytes."""
    most = max(size, fitting_batch_size(probes) // size * size)
    return (probes.chosen(range(at, min(at + most, probes.size))) for at in range(0, probes.size, most))


def _check_shapes(settings: OnnxSettings, example: Batch, probes: Batch, names: tuple[str, ...]) -> None:
    """Refuse samples whose shape is not that of the example along an axis that is not free."""
    free = settings.axes_of_inputs(example, names)
    pairs = zip(example.inputs.values(), probes.inputs.values(), strict=True)
    for name, axes, (given, probe) in zip(names, free, pairs, strict=True):
        sizes = enumerate(zip(given.shape[1:], probe.shape[1:], strict=False), 1)
        axis, lengths = next(((i, pair) for i, pair in sizes if i not in axes and pair[0] != pair[1]), (0, (0, 0)))
        if axis:
            raise BadInputError(
                f"data: batches have various shapes: axis {axis} of {name} has the lengths {lengths[0]} and "
                f"{lengths[1]}, and pruned.onnx takes one; pad all to one length in data.collate, or free the axis by "
                f"device.export.dynamic: {{length: {{{name}: {axis}}}}}"
            )


def onnx_settings(config: Config) -> OnnxSettings:
    """Return how the configuration wants ONNX files to be."""
    return OnnxSettings(config.device.export.opset, config.device.export.dynamic)


def chance_warning(model: nn.Module, splits: DataSplits, dense: Evaluation, task: Task) -> str | None:
    """Say that the dense network guesses: its metric on the search split is no better than the task's guess.

    Where a network that is right throughout could be one that guesses, say that the samples are too few.
    """
    samples = batches_of(splits.search, name="search")
    guess, metric = guess_on(model, samples, task), task.metric
    if guess is None or metric.gain(dense.metric, guess.metric) > guess.margin:
        return None
    score = f"{dense.metric:.1%} right" if metric == ACCURACY else f"{metric.word} {metric.text(dense.metric)}"
    where = f"{score} on the {counted(samples.samples, 'sample')} of the search split, where {guess.words}"
    if metric == ACCURACY and guess.metric + guess.margin >= 1.0:
        return (
            f"whether the dense network guesses cannot be told from so few samples: it has {where}; the search chooses "
            "by them, so give more: a larger data set, a search split of its own, or data.splits.search"
        )
    return (
        f"the dense network guesses: {where}; train it, give model.checkpoint or model.pretrain, or check the targets "
        "and the task (amcsearch list tasks)"
    )


def _name(config: Config, model: nn.Module) -> str:
    return f"{'model' if config.model.factory is None else 'model.factory'}: {type(model).__name__}"


def probes_of(splits: DataSplits) -> Batch:
    """Some tens of samples of the calibration and search splits in one batch, the most extreme ones among them."""
    parts = [_probes(batches_of(getattr(splits, name), name=name)) for name in ("calibration", "search")]
    left = [list(part.inputs.values()) for part in parts]
    if any(a.shape[1:] != b.shape[1:] for a, b in zip(*left, strict=False)) or len({len(each) for each in left}) > 1:
        return replace(parts[0], targets=None)  # batches that are padded, each to a length of its own
    joined = iter([torch.cat(pair) for pair in zip(*left, strict=True)])
    return replace(parts[0].map(lambda _: next(joined)), targets=None, size=sum(part.size for part in parts))


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` numbers below ``count``, spread evenly."""
    return torch.linspace(0, count - 1, min(most, count)).round().long().tolist()


def _probes(samples: Batches) -> Batch:
    """Samples spread evenly, and those with the largest and the smallest peaks and sums of each input."""
    rows = torch.tensor(_spread(samples.samples, EVEN))
    peaks = torch.cat([_peaks(batch) for batch in samples]).T  # (3 * inputs, N)
    orders = [values.argsort() for values in peaks]
    ends = [end for order in orders for end in (order[:EXTREME], order[-EXTREME:])]
    chosen = torch.unique(torch.cat([rows, *ends]))
    (probes,) = samples.batched(len(chosen)).chosen(chosen.tolist())
    return probes


def _peaks(batch: Batch) -> Tensor:
    """Largest and smallest number and the sum of every input of each sample: (N, 3 * inputs)."""
    columns = []
    for tensor in batch.inputs.values():
        if tensor.ndim and len(tensor) == batch.size and tensor[0].numel():
            flat = tensor.reshape(batch.size, -1).double()
            columns += [flat.amax(1), flat.amin(1), flat.sum(1)]
    return torch.stack(columns, 1) if columns else torch.zeros(batch.size, 1)


def _check_weights(model: nn.Module, name: str) -> None:
    for key, tensor in model.state_dict().items():
        bad = tensor[~tensor.isfinite()]
        if len(bad):
            raise BadInputError(
                f"{name}: {key} holds {float(bad[0])} ({len(bad)} of {tensor.numel()} values), must be finite; look at "
                "its initialisation, model.checkpoint and model.pretrain"
            )


def _first_pass(model: nn.Module, probes: Batch, name: str) -> Tree:
    """Return the output of a pass over all probes, of a network that takes any number of samples."""
    try:
        output = _pass_that_keeps_input(model, probes, name)
    except BadInputError:
        raise
    except Exception as error:
        if _takes_one_alone(model, probes):
            raise BadInputError(
                f"{name} takes batches of 1 alone, of {probes.size} it raises {described(error)}; {ANY_SIZE}"
            ) from error
        raise
    outputs = outputs_of(output, type(model).__name__)
    _check_real(outputs, name)
    tensors = [tensor for _, tensor in outputs]
    if len(tensors) < probes.size and all(
        t.ndim and len(t) == 1 and sample_axis(t, probes.size) is None for t in tensors
    ):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise BadInputError(f"{name} gives {shapes} for a batch of {probes.size}, as for a batch of 1; {ANY_SIZE}")
    return output


def _check_real(outputs: Sequence[tuple[str, Tensor]], name: str) -> None:
    """Refuse complex outputs: no ONNX file can give them."""
    path = next((path for path, tensor in outputs if tensor.is_complex()), None)
    if path is not None:
        raise BadInputError(
            f"{name} gives the complex output {path!r}, expected real numbers; return torch.view_as_real of it"
        )


def _takes_one_alone(model: nn.Module, probes: Batch) -> bool:
    """Whether a network runs on one sample and not on two."""
    return probes.size > 1 and _runs(model, probes.chosen([0])) and not _runs(model, probes.chosen([0, 1]))


def _runs(model: nn.Module, samples: Batch) -> bool:
    try:
        with evaluating(model), torch.inference_mode():
            samples.through(model)
    except Exception:
        return False
    return True


def _pass_that_keeps_input(model: nn.Module, probes: Batch, name: str) -> Tree:
    """Return the output of a pass over all probes, which may not change them."""
    given = probes.map(Tensor.clone)
    with evaluating(model), torch.inference_mode():
        output: Tree = given.through(model)
    pairs = zip(given.inputs.values(), probes.inputs.values(), strict=True)
    if not all(torch.equal(after, before) for after, before in pairs):
        raise BadInputError(
            f"{name} changes its input in place, so every pass would see another one; write x = x + 1 for x += 1, and "
            "inplace=False in the first layer"
        )
    return output


def _check_outputs(model: nn.Module, samples: Batches, name: str, split: str) -> None:
    problem = not_finite(model, samples, split)
    if problem is not None:
        raise BadInputError(f"{name} gives {problem}")


def not_finite(model: nn.Module, samples: Batches, split: str) -> str | None:
    """Say for how many samples of a split a network of finite weights gives NaN or infinity, and where it begins.

    None where it does not.
    """
    bad, first = 0, None
    with evaluating(model), torch.inference_mode():
        for batch in samples:
            outputs = outputs_of(batch.through(model), type(model).__name__)
            broken = torch.stack([_not_finite(tensor, batch.size) for _, tensor in outputs]).any(0)
            bad += int(broken.sum())
            if first is None and broken.any():
                first = _beginning(model, batch)
    if first is None:
        return None
    return f"NaN or infinity for {bad} of {samples.samples} samples of the {split} split, must be 0; {first}"


def _is_finite(values: Tree) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in output_tensors(values))


def _beginning(model: nn.Module, batch: Batch) -> str:
    """Say where NaN or infinity begins in a pass: in the samples, or in the layer that gives it first, and the cure."""
    if not _is_finite(tuple(batch.inputs.values())):
        return "these inputs hold NaN or infinity themselves: mend the data"
    culprits: list[str] = []

    def look(module: nn.Module, args: Tree, kwargs: Tree, output: Tree, *, name: str) -> None:
        if not culprits and _is_finite((args, kwargs)) and not _is_finite(output):
            kind = type(module).__name__
            within = "the operations between the layers of " * any(True for _ in module.children())
            culprits.append(f"{within}{name or kind}" + f" ({kind})" * bool(name))

    hooks = [
        module.register_forward_hook(partial(look, name=name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        batch.through(model)
    finally:
        for hook in hooks:
            hook.remove()
    place = culprits[0] if culprits else "its forward"
    return (
        f"its weights and these inputs are finite, so it begins in {place}: guard a division, root, logarithm or "
        "exponential there, or a sum that overflows"
    )


def _not_finite(output: Tensor, count: int) -> Tensor:
    """Which samples have NaN or infinity in an output: (count,)."""
    axis = sample_axis(output, count)
    bad = ~output.isfinite()
    if axis is None:
        return bad.any().repeat(count)
    return bad.movedim(axis, 0).reshape(count, -1).any(1)


class _Known(nn.Module):
    """A network whose output for the samples it is given is known already."""

    def __init__(self, output: Tree) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_args: Tree, **_kwargs: Tree) -> Tree:
        return self.output


def _check_repeats(model: nn.Module, probes: Batch, outputs: tuple[Tree, Tree], batch: int, name: str) -> None:
    """Compare the outputs of two passes over all probes, one after the other, and of batches of 1 and of the device."""
    first, second = outputs
    signature = signature_of(model, probes.chosen([0]))
    counts = len(outputs_of(first, type(model).__name__)), len(signature.outputs)
    if counts[0] != counts[1]:
        raise BadInputError(
            f"{name} gives {counts[0]} tensors for {probes.size} samples and {counts[1]} for one, expected the same "
            "tensors for any batch; return one tensor of all samples in place of a list of samples, and do what gives "
            "each sample another number of results (as detectors do last) outside of forward"
        )
    cure = "make its forward a function of the input alone in eval mode: no random numbers, no counters"
    checks: list[tuple[str, nn.Module, str]] = [("from call to call", _Known(second), cure)]
    cure = "compute each sample by itself: no maximum, mean or statistics over the batch, no branch on them"
    for size in sorted({1, batch}):
        checks.append((f"in batches of {size} and of {probes.size}", InBatches(model, size, signature), cure))
    for circumstance, candidate, cured in checks:
        agreement = compare(_Known(first), candidate, [probes])
        if not agreement.relative <= OUTPUTS:
            raise BadInputError(
                f"{name} gives other outputs for the same samples {circumstance}: they differ by "
                f"{agreement.relative:.3g} of their scale, at most {OUTPUTS:g} is allowed; {cured}"
            )
