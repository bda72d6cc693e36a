"""Reading and writing weights, and training on the spot with a cache.

Files are written beside their target and renamed, so that a killed process leaves the old file or the new one.
"""

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from amcsearch import __version__
from amcsearch.core import BadInputError
from amcsearch.runs import make_folder, replacing
from amcsearch.training.identity import PROBES, Identity, differences, record_network, record_split
from amcsearch.training.loop import Progress, TrainingRecipe, fit
from amcsearch.training.seeding import seeded
from amcsearch.training.splits import Samples, fetch, length

__all__ = ["load_checkpoint", "load_tensors", "pretrained", "save_state", "save_tensors"]

DIGEST: Final = "amcsearch.digest"
IDENTITY: Final = "amcsearch.identity"
DIGEST_SAMPLES: Final = 4096
NAMED: Final = 3  # keys listed in a message before "…"

_log = logging.getLogger(__name__)


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state dict into ``model``: ``.safetensors``, or ``.pt``, ``.pth``, ``.bin`` read with ``weights_only``.

    A state dict wrapped as ``{"state_dict": …}`` or ``{"model": …}`` is unwrapped. Of tensors that the model ties, one
    name is enough. The model is left as it was where the file does not fit.

    Raises:
        BadInputError: an unreadable file, or missing, unexpected or differently shaped tensors.
    """
    state = _read(Path(path))
    expected = model.state_dict()
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
    ]
    differences = "; ".join(problem for problem in problems if problem)
    if differences:
        raise BadInputError(f"checkpoint {path} does not fit the network: {differences}; check model.kwargs")
    model.load_state_dict(state)


def save_state(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, atomically; of tensors that the model ties, only the first name.

    Raises:
        BadInputError: the file cannot be written.
    """
    save_tensors(_state(model), path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what ``save_tensors`` wrote.

    Raises:
        BadInputError: a file that cannot be read.
    """
    return _read(Path(path))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, identity: Identity | None = None) -> None:
    """Write tensors by name as safetensors, atomically, with the identity of what they were trained from, if given.

    Raises:
        BadInputError: the file cannot be written.
    """
    path, state = Path(path), {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = {} if identity is None else {IDENTITY: json.dumps(identity.to_json())}
    data = safetensors.torch.save(state, {DIGEST: _digest_tensors(state), **said})
    make_folder(path.parent)
    with replacing(path, "free the disk, or choose another folder") as partial:
        partial.write_bytes(data)


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
) -> bool:
    """Train ``model`` by ``recipe``, or load what the same call trained before; it ends in eval mode.

    The cache file is named by the content of everything that decides the result: the key, the initial weights, the
    recipe, the seed, the data (all of it up to 4,096 samples, evenly spaced ones beyond), and the versions of torch and
    of this package. It holds the identity of what was trained; the weights of a network that computed something else,
    or that saw other data, are trained again, as those of a damaged file are, with a line in the log.

    Args:
        model: freshly initialised.
        dataset: the train split.
        recipe: how to train.
        key: names the network: its factory and keyword arguments.
        seed: of the training.
        cache_dir: where cache files live; made if absent.
        torch_device: where to train.
        progress: as for ``fit``; not called when the cache answers.

    Returns:
        Whether the weights came from the cache.

    Raises:
        BadInputError: as ``fit``, or the cache cannot be written.
    """
    content_key = _content_key(model, dataset, recipe, key, seed)
    path = Path(cache_dir) / f"{content_key}.safetensors"
    with seeded(seed):
        inputs, _ = fetch(dataset, range(min(PROBES, length(dataset, "train"))), "train")
    splits = {"train": record_split(dataset, "train", seed)}
    identity = Identity(content_key, {}, record_network(model, inputs), splits)
    if path.exists() and _taken_from_cache(model, path, identity):
        model.to(torch_device).eval()
        return True
    fit(model, dataset, recipe, seed=seed, torch_device=torch_device, progress=progress)
    save_tensors(_state(model), path, identity)
    return False


def _taken_from_cache(model: nn.Module, path: Path, now: Identity) -> bool:
    try:
        text = _metadata(path.read_bytes()).get(IDENTITY)
        apart = ["its identity is missing"] if text is None else differences(_identity_of(text), now)
        if not apart:
            load_checkpoint(model, path)
            return True
        _log.info("cached weights %s are not taken, and trained again: %s", path, "; ".join(apart))
    except (BadInputError, OSError, ValueError) as error:
        _log.warning("cached weights are damaged and will be trained again: %s", error)
    return False


def _identity_of(text: str) -> Identity:
    return Identity.from_json(json.loads(text), "identity")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix not in (".pt", ".pth", ".bin"):
            raise BadInputError(f"checkpoint {path} ends in {path.suffix!r}, expected .safetensors or .pt")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except BadInputError:
        raise
    except OSError as error:
        raise BadInputError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(f"checkpoint {path} is damaged or no plain state dict: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInputError(f"checkpoint {path} holds a {type(state).__name__}, expected a state dict of tensors")
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    state = safetensors.torch.load(data)
    digest = _metadata(data).get(DIGEST)
    if digest is not None and digest != _digest_tensors(state):
        raise BadInputError(f"checkpoint {path} is damaged: its tensors do not have the digest it was written with")
    return state


def _metadata(data: bytes) -> dict[str, str]:
    """Texts by name in the header of a file of safetensors."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    texts: dict[str, str] = header.get("__metadata__", {})
    return texts


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


def _digest_tensors(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)};".encode())
        digest.update(flat.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _content_key(model: nn.Module, dataset: Samples, recipe: TrainingRecipe, key: str, seed: int) -> str:
    count = length(dataset, "train")
    rows = np.unique(np.linspace(0, count - 1, min(count, DIGEST_SAMPLES)).round().astype(np.int64))
    with seeded(seed):
        inputs, targets = fetch(dataset, rows, "train")
    parts: dict[str, Any] = {
        "key": key,
        "weights": _digest_tensors(_state(model)),
        "recipe": asdict(recipe),
        "seed": seed,
        "samples": count,
        "data": _digest_tensors({"inputs": inputs, "targets": targets}),
        "torch": torch.__version__,
        "amcsearch": __version__,
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _some(problem: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {problem} ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})"
