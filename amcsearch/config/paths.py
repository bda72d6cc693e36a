"""Files named in a configuration: where they are looked for, and what they hold."""

import hashlib
import os
from pathlib import Path

from amcsearch.core import BadInputError

__all__ = ["digest", "resolve", "resolve_spec"]

_PACKAGE = Path(__file__).resolve().parents[1]


def resolve(value: str, folder: Path, where: str, *, may_be_missing: bool = False) -> str:
    """Return the absolute path of a named file or folder.

    Looked for from the current folder, then ``folder`` (the configuration's), then inside the package, then beside it
    (a checkout).

    Raises:
        BadInputError: nowhere; names ``where`` it was asked, and the file.
    """
    path = Path(value).expanduser()
    roots = (Path.cwd(), folder.absolute(), _PACKAGE, _PACKAGE.parent)
    candidates = [root / path for root in roots]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None and not may_be_missing:
        looked = "" if path.is_absolute() else f" in {roots[0]}" + (f" or {roots[1]}" if roots[0] != roots[1] else "")
        raise BadInputError(f"{where}: file {value} does not exist{looked}")
    return os.path.abspath(found or candidates[0])


def resolve_spec(spec: str, folder: Path, where: str) -> str:
    """Return an import spec with the file of a ``file.py:callable`` absolute; any other comes back as it is.

    Raises:
        BadInputError: as ``resolve``.
    """
    path, colon, name = spec.rpartition(":")
    return resolve(path, folder, where) + colon + name if path.endswith(".py") else spec


def digest(value: str | None) -> str | None:
    """Replace an absolute path by a digest of what it holds; anything else comes back as it is.

    A folder is digested by its files' names and contents; a missing path by that it is missing.
    """
    if value is None or not Path(value.partition(".py:")[0]).is_absolute():
        return value
    stem, is_factory, name = value.partition(".py:")
    path = Path(stem + ".py") if is_factory else Path(value)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(str(file.relative_to(path)).encode() + b"\0")
        try:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        except FileNotFoundError:
            total.update(b"missing")
        except OSError as error:
            raise BadInputError(f"cannot read {file}: {error.strerror}") from error
    return total.hexdigest() + (":" + name if is_factory else "")
