"""Files of tensors by name: safetensors, and what torch pickles, read with ``weights_only``.

What such a file declares may be far more than it holds: records that share their bytes, tensors without storage, shapes
without values. It is read only up to ``MOST_BYTES``, an archive's records must fit into it, and only dense tensors of
real numbers come back.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from amcsearch.core import BadInputError, open_file, read_bytes
from amcsearch.runs import make_folder, replacing

__all__ = ["check_archive", "digest_tensors", "load_tensors", "read_texts", "read_torch", "save_tensors"]

MOST_BYTES: Final = 2**34
"""Of a file: 16 GiB, four billion parameters of float32."""
DIGEST: Final = "amcsearch.digest"
_ZIP: Final = b"PK\x03\x04"


def save_tensors(tensors: Mapping[str, Tensor], path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write tensors by name as safetensors, atomically, and texts by name beside them.

    Raises:
        BadInputError: the file cannot be written.
    """
    path, state = Path(path), {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(state, {DIGEST: digest_tensors(state), **(texts or {})})
    make_folder(path.parent)
    with replacing(path, "free the disk, or choose another folder") as partial:
        partial.write_bytes(data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what ``save_tensors`` wrote, or a state dict that torch saved (``.pt``, ``.pth``, ``.bin``).

    A state dict wrapped as ``{"state_dict": …}``, ``{"model_state_dict": …}`` or ``{"model": …}`` is unwrapped.

    Raises:
        BadInputError: a file that cannot be read, is damaged or too large, or holds anything but dense tensors of real
            numbers by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _dense(_read_safetensors(path), path)
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise BadInputError(f"checkpoint {path} ends in {path.suffix!r}, expected .safetensors or .pt")
    state = read_torch(path, "checkpoint")
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise BadInputError(f"checkpoint {path} holds a {type(state).__name__}, expected a state dict of tensors")
    return _dense(state, path)


def read_texts(path: Path) -> dict[str, str]:
    """Return the texts by name that ``save_tensors`` wrote beside the tensors.

    Raises:
        BadInputError: a file that cannot be read, or is damaged.
    """
    data = read_bytes(path, "checkpoint", MOST_BYTES)
    try:
        return _texts_of(data)
    except Exception as error:  # the header may hold anything
        raise BadInputError(f"checkpoint {path} is damaged: {error}; make it again") from error


def _texts_of(data: bytes) -> dict[str, str]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__") or {})


def read_torch(path: Path, name: str) -> Any:
    """Return what torch saved in a file; ``name`` says in an error what the file is.

    Raises:
        BadInputError: a file that cannot be read, is damaged or too large, or holds objects that are no plain values.
    """
    try:
        check_archive(path, name)
        return torch.load(path, map_location="cpu", weights_only=True)
    except BadInputError:
        raise
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in reason or "Weights only" in reason:
            reason = "it holds objects beside tensors"
        raise BadInputError(
            f"{name} {path} is damaged or no plain state dict: {reason}; save model.state_dict() with torch.save"
        ) from error


def digest_tensors(state: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)};".encode())
        digest.update(flat.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    data = read_bytes(path, "checkpoint", MOST_BYTES)
    try:
        state = safetensors.torch.load(data)
        digest = _texts_of(data).get(DIGEST)
        is_whole = digest is None or digest == digest_tensors(state)
    except Exception as error:  # also types of numbers that this torch does not know
        raise BadInputError(f"checkpoint {path} is damaged: {error}; make it again") from error
    if not is_whole:
        raise BadInputError(f"checkpoint {path} is damaged: its tensors do not have the digest it was written with")
    return state


def check_archive(path: Path, name: str) -> None:
    """Check that the records of an archive of torch's fit into its file: others may declare endless ones.

    A file of another kind passes, such as one of an old torch.

    Raises:
        BadInputError: the file cannot be read or is too large, or its records are compressed or share bytes.
    """
    with open_file(path, name, MOST_BYTES) as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return
        try:
            with zipfile.ZipFile(stream) as archive:
                declared = sum(record.file_size for record in archive.infolist())
        except Exception as error:  # a damaged directory makes the reader raise almost anything
            raise BadInputError(f"{name} {path} is damaged: {error}; make it again") from error
        size = path.stat().st_size
    if declared > size:
        raise BadInputError(
            f"{name} {path} has {size} bytes and declares {declared}: its records are compressed or overlap; save it "
            "with torch.save"
        )


def _dense(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors by name, where all of them are dense and real."""
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise BadInputError(f"checkpoint {path}: {name!r:.80} {problem}; save a state dict of dense tensors")
    return dict(state)


def _problem(name: object, value: object) -> str:
    """Say what is wrong with an entry of a state dict, nothing where it can be used."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}, expected the name of a tensor"
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, expected a tensor"
    if value.is_nested or value.layout is not torch.strided:
        return f"is a tensor of layout {value.layout}, expected a dense one"
    if value.is_meta:
        return "is a tensor without values (device meta)"
    if value.is_quantized or value.is_complex():
        return f"is a tensor of {value.dtype}, expected real numbers"
    return ""
