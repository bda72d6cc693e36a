"""Weights that a layer computes anew at every call, folded into plain ones that can be pruned.

Weight norm (Salimans and Kingma, 2016, arXiv 1602.07868) and spectral norm (Miyato et al., 2018, arXiv 1802.05957), as
hooks or as parametrisations, and any other parametrisation; convolutions and linear layers of a class of their own that
standardise their weight first (Qiao et al., 2019, arXiv 1903.10520). In evaluation mode such a weight is constant. What
it is computed from would change with every channel that leaves.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from amcsearch.core import BadInputError
from amcsearch.graph.batch import Batch, as_batch
from amcsearch.graph.modes import evaluating
from amcsearch.graph.slices import Trace

__all__ = ["check_folded", "fold_weights"]

_PLAIN: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_CALLS: Final = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}


def fold_weights(model: nn.Module, example: Tensor | Batch) -> list[str]:
    """Make plain weights of computed ones, in place; return the names of the layers, in order.

    The network computes what it did in evaluation mode; training it goes on without the norm. ``example`` is one or
    more samples, as the network takes them; a tensor (N, …) is that of a network of one argument.
    """
    batch = as_batch(example)
    folded = [name for name, module in model.named_modules() if _remove_hooks(module)]
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            _unparametrized(module)
            folded.append(name)
    standardised = [m for m in model.modules() if isinstance(m, _PLAIN) and type(m).forward is not _base(m).forward]
    if standardised:
        with evaluating(model), torch.no_grad(), _recorded(standardised) as calls:
            batch.through(model)
        names = {id(module): name for name, module in model.named_modules()}
        folded += [names[id(module)] for module in standardised if _replaced(module, calls.get(id(module)))]
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return sorted(folded, key=order.__getitem__)


def check_folded(model: nn.Module, trace: Trace) -> None:
    """Check that a model has the plain weights that its trace is of.

    Raises:
        BadInputError: a layer that was folded in the traced copy computes its weight anew at every call.
    """
    modules = dict(model.named_modules()) if trace.folded else {}
    name = next((name for name in trace.folded if name in modules and _computes(modules[name])), None)
    if name is not None:
        raise BadInputError(
            f"layer {name!r} computes its weight at every call (weight norm, spectral norm, …), and the trace is of a "
            "copy with plain ones; call amcsearch.fold_weights(model, example) first, which changes the model in place"
        )


def _computes(module: nn.Module) -> bool:
    """Whether a module that was folded in a copy is not folded here."""
    if parametrize.is_parametrized(module):
        return True
    if any(isinstance(hook, WeightNorm | SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    return isinstance(module, _PLAIN) and type(module).forward is not _base(module).forward


def _remove_hooks(module: nn.Module) -> bool:
    hooks = list(module._forward_pre_hooks.values())
    for hook in hooks:
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            _forget_loading(module)
    return any(isinstance(hook, WeightNorm | SpectralNorm) for hook in hooks)


def _forget_loading(module: nn.Module) -> None:
    """Let the module load plain weights: torch 2.13's own removal leaves the hook that asks for the computed ones."""
    hooks, stale = module._load_state_dict_pre_hooks, SpectralNormLoadStateDictPreHook
    for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "hook", hook), stale)]:
        del hooks[key]


def _unparametrized(module: nn.Module) -> None:
    """Make plain parameters of computed tensors.

    Torch's own removal changes the class of the module, which copies of it share: they would lose their weights.
    """
    parametrizations = module._modules["parametrizations"]
    assert isinstance(parametrizations, nn.ModuleDict)
    values = {tensor: getattr(module, tensor).detach().clone() for tensor in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for tensor, value in values.items():
        module.register_parameter(tensor, nn.Parameter(value))


def _base(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in type(module).__mro__ if kind in _PLAIN)


class _Calls(TorchFunctionMode):
    """The weights of the products that run, and what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []  # input, weight, result

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _CALLS and len(args) > 1 and isinstance(result, Tensor):
            self.products.append((args[0], args[1], result))
        return result


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[dict[int, tuple[Tensor, Tensor, Tensor]]]:
    """Yield the one product of each module that takes its input and gives its output, by id, filled in as they run."""
    calls: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    mode = _Calls()

    def enter(_: nn.Module, __: Any) -> None:
        mode.products.clear()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        for x, weight, result in mode.products:
            if inputs and x is inputs[0] and result is output:
                calls[id(module)] = x, weight, result

    handles = [m.register_forward_pre_hook(enter) for m in modules] + [m.register_forward_hook(leave) for m in modules]
    try:
        with mode:
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def _replaced(module: nn.Module, call: tuple[Tensor, Tensor, Tensor] | None) -> bool:
    """Make a module of torch's own class of it, if that computes the same with the weight of the call."""
    dense = module.weight
    assert isinstance(dense, nn.Parameter)
    if call is None or call[1] is dense or call[1].shape != dense.shape:
        return False
    x, weight, result = call
    kind, saved = type(module), dense.detach().clone()
    dense.data.copy_(weight)
    module.__class__ = _base(module)
    with torch.no_grad():
        given = module(x)
    if given.shape == result.shape and torch.allclose(given, result, rtol=1e-4, atol=1e-5):
        return True
    module.__class__ = kind
    dense.data.copy_(saved)
    return False
