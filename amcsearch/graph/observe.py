"""Run a module once and write down its layers in order of execution."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amcsearch.graph.layer_types import layer_type
from amcsearch.graph.outputs import output_tensors
from amcsearch.graph.recorder import AttentionCall, Observation, Recorder, is_unknown, loose_dim, tensors_in
from amcsearch.graph.slices import Skipped

__all__ = ["AttentionCall", "Observation", "is_unknown", "loose_dim", "observe"]


@contextmanager
def _hooked(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Keep the recorder's stack of running modules, and tell it of every call of a known layer."""

    def enter(module: nn.Module, _: Any) -> None:
        recorder.stack.append(module)

    def leave(module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        recorder.stack.pop()
        operands = [*tensors_in(inputs), *tensors_in(kwargs.values())]
        result = next(output_tensors(output), None)
        if result is None or not operands:
            return
        before = len(recorder.seen.layers)
        if isinstance(module, nn.MultiheadAttention):
            keys = operands if len(operands) > 1 else operands * 2
            recorder.packed_attention(module, tuple(keys))
        elif layer_type(module) is not None:
            recorder.called(module, operands[0].shape, result.shape)
        if len(recorder.seen.layers) > before:
            recorder.maps.wrote(result, operands[0])

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


def observe(model: nn.Module, example: Tensor) -> Observation:
    """Run ``model`` on ``example`` (1, …) and return its layers; what could not be counted is in ``skipped``.

    The module should be in eval mode with gradients on, or torch may take a fused path that calls no child.
    """
    recorder = Recorder(model)
    with _hooked(model, recorder), recorder, torch.enable_grad():
        model(example)
    seen = recorder.seen
    for here, shape, _ in recorder.scores:
        seen.skipped.append(Skipped(here, f"a product of two activations of shape {shape} is not counted"))
    for path, module in model.named_modules():
        if is_unknown(module) and path not in {name.rpartition(".")[0] for name in recorder.multiplied}:
            reason = f"layers of type {type(module).__name__} are not known: MACs not counted, widths left alone"
            seen.skipped.append(Skipped(path, reason))
    for key, name in recorder.parameters.items():
        if key not in recorder.owned:
            tensor = dict(model.named_parameters())[name]
            recorder._parameter(name, tensor)
            seen.skipped.append(Skipped(name, "a parameter that this example never used: counted, left alone"))
    return seen
