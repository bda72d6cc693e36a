"""A network's weights from a file and into one, and training on the spot with a cache."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from amcsearch import __version__
from amcsearch.core import BadInputError, parse_json
from amcsearch.training.identity import PROBES, Identity, SplitRecord, differences, record_network, record_split
from amcsearch.training.loop import CLASS_IDS, Augmentation, Progress, fit
from amcsearch.training.recipe import TrainingRecipe
from amcsearch.training.seeding import seeded
from amcsearch.training.splits import Samples, length, read
from amcsearch.training.task import Task
from amcsearch.training.tensor_files import digest_tensors, load_tensors, read_texts, save_tensors

__all__ = ["load_checkpoint", "pretrained", "save_state"]

IDENTITY: Final = "amcsearch.identity"
NAMED: Final = 3  # keys listed in a message before "…"

_log = logging.getLogger(__name__)


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state dict into ``model``: ``.safetensors``, or ``.pt``, ``.pth``, ``.bin`` read with ``weights_only``.

    A state dict wrapped as ``load_tensors`` names is unwrapped, and a prefix that all names have beyond the model's own
    is dropped: ``module.`` of data parallelism, ``_orig_mod.`` of ``torch.compile``, ``model.`` of Lightning. Of
    tensors that the model ties, one name is enough. The model is left as it was where the file does not fit.

    Raises:
        BadInputError: as ``load_tensors``; missing, unexpected or differently shaped tensors; whole numbers for real
            ones or the other way round; NaN in any tensor, or infinity in a parameter, once it has the model's type.
    """
    expected = model.state_dict()
    state = _without_prefix(load_tensors(Path(path)), expected)
    for names in _tied(model):
        known = next((name for name in names if name in state), None)
        if known is not None:
            state.update({name: state[known] for name in names if name not in state})
    problems = [
        _some("missing", sorted(set(expected) - set(state))),
        _some("unexpected", sorted(set(state) - set(expected))),
        _some(
            "shapes differ",
            [
                f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in state and state[name].shape != tensor.shape
            ],
        ),
        _some(
            "of other numbers",
            [
                f"{name} {state[name].dtype} for {tensor.dtype}"
                for name, tensor in expected.items()
                if name in state and state[name].is_floating_point() != tensor.is_floating_point()
            ],
        ),
    ]
    differences = "; ".join(problem for problem in problems if problem)
    if differences:
        raise BadInputError(
            f"checkpoint {path} does not fit the network: {differences}; check model.kwargs, or the network handed over"
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in expected.items():
        _check_finite(path, name, state[name].to(tensor.dtype), name in parameters)
    model.load_state_dict(state)


def _without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what stands before every name, where the model has all names that this leaves, and not those of the file."""
    name = next((each for each in state if each not in expected), "")
    for parts in range(1, name.count(".") + 1):
        prefix = ".".join(name.split(".")[:parts]) + "."
        if all(each.startswith(prefix) and each.removeprefix(prefix) in expected for each in state):
            return {each.removeprefix(prefix): tensor for each, tensor in state.items()}
    return dict(state)


def _check_finite(path: Path, name: str, tensor: Tensor, is_parameter: bool) -> None:
    """Refuse what no training leaves and no result survives; a buffer may hold infinity, such as a mask's."""
    wrong = ~torch.isfinite(tensor) if is_parameter else torch.isnan(tensor)
    if wrong.any():
        values = "NaN or infinite" if is_parameter else "NaN"
        raise BadInputError(
            f"checkpoint {path}: {int(wrong.sum())} of {wrong.numel()} numbers in {name} are {values}; take one from "
            "before the training diverged"
        )


def save_state(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, atomically; of tensors that the model ties, only the first name.

    Raises:
        BadInputError: the file cannot be written.
    """
    save_tensors(_state(model), path)


def pretrained(
    model: nn.Module,
    dataset: Samples,
    recipe: TrainingRecipe,
    *,
    key: str,
    seed: int,
    cache_dir: Path,
    torch_device: str = "cpu",
    progress: Progress | None = None,
    task: Task = CLASS_IDS,
    augmentation: Augmentation | None = None,
) -> bool:
    """Train ``model`` by ``recipe``, or load what the same call trained before; it ends in eval mode.

    The cache file is named by the content of everything that decides the result: the key, the initial weights, the
    recipe, the seed, the data (all of it in memory, else up to 1,024 samples), and the versions of torch and
    of this package. It holds the identity of what was trained; the weights of a network that computed something else,
    or that saw other data, are trained again, as those of a damaged file are, with a line in the log.

    Args:
        model: freshly initialised.
        dataset: the train split.
        recipe: how to train.
        key: names the network, the task and the augmentation: factories and arguments.
        seed: of the training.
        cache_dir: where cache files live; made if absent.
        torch_device: where to train.
        progress: as for ``fit``; not called when the cache answers.
        task: the loss.
        augmentation: as for ``fit``.

    Returns:
        Whether the weights came from the cache.

    Raises:
        BadInputError: as ``fit``, or the cache cannot be written.
    """
    record = record_split(dataset, "train", seed)
    content_key = _content_key(model, record, recipe, key, seed)
    path = Path(cache_dir) / f"{content_key}.safetensors"
    with seeded(seed):
        batch = read(dataset, range(min(PROBES, length(dataset, "train"))), "train")
    identity = Identity(content_key, {}, record_network(model, batch), {"train": record})
    if path.exists() and _taken_from_cache(model, path, identity):
        model.to(torch_device).eval()
        return True
    fit(
        model,
        dataset,
        recipe,
        seed=seed,
        torch_device=torch_device,
        progress=progress,
        task=task,
        augmentation=augmentation,
    )
    save_tensors(_state(model), path, {IDENTITY: json.dumps(identity.to_json())})
    return False


def _taken_from_cache(model: nn.Module, path: Path, now: Identity) -> bool:
    try:
        text = read_texts(path).get(IDENTITY)
        apart = ["its identity is missing"] if text is None else differences(_identity_of(text), now)
        if not apart:
            load_checkpoint(model, path)
            return True
        _log.info("cached weights %s are not taken, and trained again: %s", path, "; ".join(apart))
    except BadInputError as error:
        _log.warning("cached weights are damaged and will be trained again: %s", error)
    return False


def _identity_of(text: str) -> Identity:
    return Identity.from_json(parse_json(text, "identity"), "identity")


def _state(model: nn.Module) -> dict[str, Tensor]:
    aliases = {name for names in _tied(model) for name in names[1:]}
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if name not in aliases
    }


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of the tensors that are one and the same object, in order."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _content_key(model: nn.Module, data: SplitRecord, recipe: TrainingRecipe, key: str, seed: int) -> str:
    parts: dict[str, Any] = {
        "key": key,
        "weights": digest_tensors(_state(model)),
        "recipe": asdict(recipe),
        "seed": seed,
        "samples": data.samples,
        "data": [data.inputs and data.inputs.digest, data.targets.digest],
        "torch": torch.__version__,
        "amcsearch": __version__,
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _some(problem: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {problem} ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})"
