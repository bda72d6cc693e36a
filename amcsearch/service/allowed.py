"""What a request may name: code of an allow-list, and files in folders of an allow-list.

Every text of a request is looked at, whatever key it has: a text with a colon may become an import somewhere in the
house, and one with a separator may become a path. A key that a later version adds is therefore covered by itself.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from amcsearch.config import DEVICES, TABLES
from amcsearch.core import BadInputError, printable
from amcsearch.runs import expanded
from amcsearch.service.job_process import RUN

__all__ = ["SHIPPED", "UPLOADS", "Allowed", "file_inside"]

SHIPPED: Final = frozenset(
    {
        *(f"amcsearch.training.models:{name}" for name in ("resnet20", "resnet18", "mobilenetv2", "vgg", "vit")),
        "amcsearch.training.models:language_model",
        *(f"amcsearch.training.data:{name}" for name in ("digits", "text")),
    }
)
"""Networks and data that ship; a test compares them with their registries, which only torch can import."""
UPLOADS: Final = "uploads"
"""The folder of files that callers sent, inside ``runs``."""
_TORCH_DEVICE: Final = re.compile(r"(cpu|cuda|mps|xpu):\d{1,3}")  # colons that name no code
_LONGEST_SHOWN: Final = 80
_HIDDEN: Final = "."  # names of locks and of trainings on their way begin with it


@dataclass(frozen=True)
class Allowed:
    """What requests may name.

    Args:
        runs: folder of all jobs; what jobs left and what was uploaded may be named.
        factories: patterns ``module:callable`` or ``file.py:callable``; ``*`` stands for any letters.
        folders: of the operator's, whose files may be named.

    Raises:
        BadInputError: a pattern without a colon, or a folder that cannot be a path.
    """

    runs: Path
    factories: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.factories:
            module, _, name = pattern.rpartition(":")
            if not module or not name:
                raise BadInputError(f"allowed factory {pattern!r}, expected MODULE:CALLABLE, such as my_models:make")

    def check(self, values: object) -> None:
        """Check every text in the plain values of a request.

        Called before anything looks at the files that a request names, and again when they are absolute.

        Raises:
            BadInputError: code or a file that is not allowed; names the key and who can allow it.
        """
        for key, text in _texts(values):
            if "\0" in text:
                raise BadInputError(f"{key} has a null character; leave it out")
            if ":" in text and not _TORCH_DEVICE.fullmatch(text):
                self._check_factory(key, text)
            elif _is_path(text) or (key.rpartition(".")[2] != "name" and os.path.lexists(text)):
                self._check_path(key, text)

    def _check_factory(self, key: str, spec: str) -> None:
        if spec in SHIPPED:
            return
        module, _, name = spec.rpartition(":")
        if module.endswith(".py"):
            allows = any(_file_matches(module, pattern) and fnmatchcase(name, call) for pattern, call in self._patterns)
        else:
            allows = any(fnmatchcase(module, pattern) and fnmatchcase(name, call) for pattern, call in self._patterns)
        if not allows:
            raise BadInputError(
                f"{key} = {_shown(spec)} names code that this service does not allow; use a name of `amcsearch list`, "
                "or let its operator start it with --allow MODULE:CALLABLE"
            )

    @property
    def _patterns(self) -> Iterator[tuple[str, str]]:
        for pattern in self.factories:
            module, _, name = pattern.rpartition(":")
            yield module, name

    def _check_path(self, key: str, text: str) -> None:
        try:
            path = expanded(text).resolve()
        except (BadInputError, OSError, RuntimeError) as error:  # a loop of links, a name that is too long
            raise BadInputError(f"{key} = {_shown(text)} is no path; name another one") from error
        if not self.allows(path):
            raise BadInputError(
                f"{key} = {_shown(text)} is outside what this service may read; name a table or device of "
                "`amcsearch list`, a file of a job, or let its operator start it with --allow-files FOLDER"
            )

    def allows(self, path: Path) -> bool:
        """Whether requests may name a file or folder, an absolute path without links."""
        runs = self.runs.resolve()
        if path.is_relative_to(runs):
            parts = path.relative_to(runs).parts
            is_upload = parts[:1] == (UPLOADS,) and len(parts) == 3 and not parts[1].startswith(_HIDDEN)
            return is_upload or (parts[:1] != (UPLOADS,) and parts[1:2] == (RUN,))
        named = (folder for kind in (DEVICES, TABLES) for folder in (*kind.user_folders, *kind.shipped_folders))
        local = (Path.cwd() / folder for kind in (DEVICES, TABLES) for folder in kind.folders)
        return any(path.is_relative_to(folder.resolve()) for folder in (*self.folders, *named, *local))


def _texts(values: object) -> Iterator[tuple[str, str]]:
    """Every text in plain values with its dotted key."""
    waiting: list[tuple[str, object]] = [("", values)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Mapping):
            waiting += [(f"{key}.{name}".lstrip("."), inner) for name, inner in value.items()]
        elif isinstance(value, Sequence):
            waiting += [(f"{key}.{number}".lstrip("."), inner) for number, inner in enumerate(value)]


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith("~") or text in (".", "..")


def _file_matches(file: str, pattern: str) -> bool:
    """Whether the file is what a pattern means, both absolute and without links and ``..``."""
    if not pattern.endswith(".py"):
        return False
    try:
        path, head = expanded(file).resolve(), expanded(pattern)
        return fnmatchcase(str(path), str(head.parent.resolve() / head.name))
    except (BadInputError, OSError, RuntimeError):
        return False


def _shown(text: str) -> str:
    return repr(printable(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"))


def file_inside(folder: Path, path: str) -> Path | None:
    """Return the file of a relative path below a folder, None where there is none.

    No link, ``..``, absolute path, drive or separator of another system leads out of the folder, and hidden files are
    not there.
    """
    parts = path.split("/")
    if any(not part or part.startswith(_HIDDEN) or "\\" in part or "\0" in part or ":" in part for part in parts):
        return None
    try:
        whole, root = (folder / path).resolve(strict=True), folder.resolve(strict=True)
        return whole if whole.is_relative_to(root) and whole.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None
