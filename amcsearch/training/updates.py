"""Steps of an optimiser: groups of parameters, precision, clipped gradients, frozen statistics and averaged weights.

scaled loss (float16)    dL'/dw = s · dL/dw;  a step with an infinite gradient is left out and s halved; after 2000
                         steps without one, s doubles (Micikevicius et al. 2018, arXiv 1710.03740)
clipping                 g <- g · min(1, c / |g|), |g| over all parameters (Pascanu et al. 2013, arXiv 1211.5063)
averaging                a <- d · a + (1 - d) · w with d = min(decay, (1 + t) / (10 + t)) after t steps, a from the
                         weights before the training: early on, when weights move most, a forgets them sooner
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amcsearch.core import BadInputError, DivergedError
from amcsearch.training.recipe import TrainingRecipe

__all__ = [
    "Averages",
    "LossScale",
    "check_recipe",
    "check_weights",
    "clip",
    "freeze_statistics",
    "largest",
    "make_optimizer",
    "precision_of",
]

_GOOD_STEPS: Final = 2000
_LEAST_SCALE: Final = 1.0
MOST_GROWTH: Final = 1e3  # times the largest parameter before the training, or 1


def check_recipe(recipe: TrainingRecipe, torch_device: str, *, is_hooked: bool = False) -> None:
    """Refuse what a device, or a training under masks and gates, cannot do.

    Raises:
        BadInputError: float16 without CUDA; or, where masks and gates make the gradients, accumulation, clipping or
            float16.
    """
    if recipe.precision == "float16" and torch.device(torch_device).type != "cuda":
        raise BadInputError(
            f"precision = 'float16' needs a CUDA device, evaluation.torch_device is {torch_device!r}; choose bfloat16 "
            "or float32"
        )
    if not is_hooked:
        return
    for name, value, plain in (
        ("accumulation", recipe.accumulation, 1),
        ("clip_norm", recipe.clip_norm, None),
        ("precision", "float32" if recipe.precision == "bfloat16" else recipe.precision, "float32"),
    ):
        if value != plain:
            written = "null" if plain is None else plain
            raise BadInputError(f"{name} = {value!r} is not possible under masks or gates; set it to {written}")


def make_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Make the optimiser of all parameters that require a gradient, in a group with weight decay and one without.

    Raises:
        BadInputError: there is no such parameter.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise BadInputError("the network has no parameter that requires a gradient; there is nothing to train")
    spared = _spared(model, recipe.no_decay)
    groups = [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.learning_rate, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.momentum > 0.0)


def _spared(model: nn.Module, kinds: Iterable[str]) -> set[int]:
    """Ids of the parameters without weight decay."""
    spared: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_of = {
                "vectors": parameter.ndim < 2,
                "biases": name == "bias" or name.endswith("_bias"),
                "norms": "norm" in type(module).__name__.lower(),  # torch's own and those of other libraries
                "embeddings": isinstance(module, nn.Embedding | nn.EmbeddingBag),
            }
            if any(is_of[kind] for kind in kinds):
                spared.add(id(parameter))
    return spared


def freeze_statistics(model: nn.Module) -> None:
    """Let batch norms normalise by their running statistics, which stay as they are; other modules keep their modes."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.eval()


def precision_of(recipe: TrainingRecipe, torch_device: str) -> AbstractContextManager[Any]:
    """Return the context in which networks compute: autocast, or nothing for float32.

    Casts are not cached: autocast forgets them only when the outermost one is left, which user code may have entered,
    and every step changes the weights.
    """
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(torch_device).type, getattr(torch, recipe.precision), cache_enabled=False)


def clip(parameters: Iterable[nn.Parameter], norm: float) -> None:
    """Shorten the gradient of all parameters together to the length ``norm``."""
    nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], norm)


class LossScale:
    """The factor by which a float16 loss is multiplied, so that small gradients do not become 0."""

    def __init__(self) -> None:
        self.value, self.good = 2.0**16, 0

    def unscale(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divide gradients by the factor and adapt it; return whether all are finite, so that a step may be made."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.div_(self.value)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            self.value, self.good = max(_LEAST_SCALE, self.value / 2.0), 0
            return False
        self.good += 1
        if self.good == _GOOD_STEPS:
            self.value, self.good = self.value * 2.0, 0
        return True


class Averages:
    """A moving average of a network's parameters and buffers; buffers of whole numbers are the latest."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def update(self, model: nn.Module) -> None:
        """Take up the network after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, tensor in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.mul_(decay).add_(tensor.detach(), alpha=1.0 - decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Put the averages into the network, and its own weights back on leaving."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(weights)

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on."""
        return {"tensors": self.tensors, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        for name, tensor in self.tensors.items():
            stored: Tensor = state["tensors"][name]
            tensor.copy_(stored)
        self.steps = int(state["steps"])


def largest(model: nn.Module) -> float:
    """Largest absolute value of a parameter; NaN where one is."""
    peaks = [parameter.detach().abs().max() for parameter in model.parameters() if parameter.numel()]
    return float(torch.stack([peak.double().cpu() for peak in peaks]).max()) if peaks else 0.0


def check_weights(model: nn.Module, began: float, recipe: TrainingRecipe, loss: float) -> None:
    """Refuse weights of a training that diverged; ``began`` is the largest one before it, ``loss`` the last epoch's.

    Raises:
        DivergedError: a parameter or buffer that is not finite, or a parameter that grew too large.
    """
    bad = next((name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()), None)
    ended, most = largest(model), MOST_GROWTH * max(1.0, began)
    if bad is None and ended <= most:
        return
    problem = f"{bad} is not finite" if bad else f"the largest weight is {ended:.3g}, must be at most {most:.3g}"
    raise DivergedError(
        f"the training diverged in epoch {recipe.epochs}, whose mean loss was {loss:.4g}, at learning_rate = "
        f"{recipe.learning_rate:.3g}: {problem}; lower the learning rate, or lengthen the warm-up"
    )
