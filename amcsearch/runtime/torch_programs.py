"""Programs of ``torch.export``: a network that needs neither its source code nor this package. And quiet exporters."""

import ctypes
import functools
import io
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Tree, as_batch, evaluating, plain_tree, tensors_of_tree
from amcsearch.runtime.comparison import InBatches
from amcsearch.runtime.signature import Signature

__all__ = ["exporting", "program_module", "reason_of", "torch_program"]


def torch_program(model: nn.Module, example: Batch | Tensor, free: Sequence[Collection[int]] = ()) -> bytes:
    """Return ``model`` as a serialised ``torch.export`` program; the module is unchanged.

    ``torch.export.load`` reads it back where neither the module's source nor this package is installed: it takes and
    gives tuples, lists and dicts alone, a data class or a mapping of another type becoming a dict. Inputs may have any
    batch size, or that of ``example`` alone where the module depends on it.

    Args:
        model: any module.
        example: what it is called with; a tensor (N, …) is its only argument.
        free: axes of every input, beside the first, that may have any length; none where it is empty.

    Raises:
        BadInputError: torch cannot follow the module's forward, or cannot read back what it wrote; the message holds
            its reason.
    """
    batch = as_batch(example)
    pair = batch.chosen([row % batch.size for row in range(2)])  # torch.export takes a batch of 1 for a constant
    reason = "no reason given"
    with evaluating(model), exporting(), torch.no_grad():
        for inputs, is_free in ((pair, True), (batch, False)):
            try:
                file = io.BytesIO()
                torch.export.save(_program(model, inputs, free, is_free=is_free), file)
                torch.export.load(io.BytesIO(file.getvalue()))  # it fails where a module has an unusual name
                return file.getvalue()
            except Exception as error:  # whatever user code and torch may raise while tracing
                reason = reason_of(error)
    raise BadInputError(f"torch.export cannot follow {type(model).__name__} ({reason}); make its forward traceable")


def _program(
    model: nn.Module, batch: Batch, free: Sequence[Collection[int]], *, is_free: bool
) -> torch.export.ExportedProgram:
    args, kwargs = plain_tree(batch.args), plain_tree(dict(batch.kwargs))
    output = batch.map(Tensor.clone).through(model)
    if any(map(_has_classes, (batch.args, batch.kwargs, output))):
        model = _Plain(model, batch)
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    size = torch.export.Dim("batch", min=1)
    for tensor, axes in zip(batch.inputs.values(), [*free, *[()] * len(batch.inputs)], strict=False):
        of_samples = {0: size} if is_free and tensor.ndim and len(tensor) == batch.size else {}
        named = {**dict.fromkeys(set(axes) - {0}, torch.export.Dim.DYNAMIC), **of_samples}
        if named:
            shapes[tensor] = named
    is_fixed = not is_free and not any(set(axes) - {0} for axes in free)
    dynamic = None if is_fixed else shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]
    return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)


def _has_classes(tree: Tree) -> bool:
    """Whether a tree holds anything but tensors, plain values, tuples, lists and dicts."""
    if type(tree) in (tuple, list, dict):
        return any(map(_has_classes, tree.values() if isinstance(tree, dict) else tree))
    return not isinstance(tree, Tensor | str | int | float | bool | None)


class _Plain(nn.Module):
    """The network of data classes and mappings, as one of tuples, lists and dicts, with the same arguments."""

    def __init__(self, network: nn.Module, example: Batch) -> None:
        super().__init__()
        self.network = network
        self._example = example
        # torch.export names free axes by the arguments of forward, and cannot where these are ``**kwargs``
        self.forward = functools.update_wrapper(functools.partial(self._forward), network.forward)

    def _forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        left = iter([tensor for _, tensor in (*tensors_of_tree(args), *tensors_of_tree(kwargs))])
        return plain_tree(self._example.map(lambda _: next(left)).through(self.network))


def program_module(path: Path, signature: Signature | None = None) -> nn.Module:
    """Return the network of a ``torch.export`` program that ``torch_program`` made, for any number of samples.

    ``signature`` is that of the network, where it has several outputs.

    Raises:
        BadInputError: the file cannot be read.
    """
    try:
        program = torch.export.load(path)
        inputs = set(program.graph_signature.user_inputs)
        shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in inputs]
        sizes = [shape[0] for shape in shapes if len(shape)]
        module: nn.Module = program.module()
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise BadInputError(f"cannot read {path}: {next(iter(str(error).splitlines()), 'damaged')}") from error
    return _Program(module, sizes[0] if sizes and isinstance(sizes[0], int) else None, signature)


class _Program(InBatches):
    def train(self, mode: bool = True) -> "_Program":
        """Stay as it is: a program has the mode that it was exported in."""
        del mode
        return self


def reason_of(error: Exception) -> str:
    """Return the type of an exception and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"


@contextmanager
def _silent(descriptor: int) -> Iterator[None]:
    """Send what native code writes to a descriptor nowhere: exporters print the graph that they fail on."""
    try:
        kept = os.dup(descriptor)
    except OSError:  # it is closed
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, descriptor)
        yield
    finally:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what is printed, but not written yet
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(sink)


@contextmanager
def exporting() -> Iterator[None]:
    """Keep the exporters quiet: they warn of their own deprecations, log, and print the graph that they fail on.

    Torch's fused fast path of ``nn.TransformerEncoderLayer`` is switched off meanwhile: it has no ONNX form. And torch
    computes on one thread: a pass of few samples gains next to nothing from more, and where other programs use the
    cores, threads wait for each other.
    """
    logger = logging.getLogger("torch")
    level, fast_path = logger.level, torch.backends.mha.get_fastpath_enabled()
    threads = torch.get_num_threads()
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        printed = io.StringIO()
        with warnings.catch_warnings(), redirect_stderr(printed), redirect_stdout(printed), _silent(1), _silent(2):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logger.setLevel(level)
