"""Find what is named: a path, else a name in the project's or the user's folder, else a name shipped with the package.

A path is looked for from the current folder, then from the configuration's. A name is looked for in ``configs`` and
``latency_tables`` below the current folder, then in the user's folder (``AMCSEARCH_HOME``, else
``~/.config/amcsearch``), then in the package.
"""

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from amcsearch.config.messages import hint
from amcsearch.core import BadInputError
from amcsearch.runs import expanded

__all__ = ["CONFIGURATIONS", "DEVICES", "TABLES", "Kind", "find", "find_file", "listed", "lookup", "writable"]


@dataclass(frozen=True)
class Kind:
    """One kind of things that have names.

    ``folders`` lie below the current folder and inside the package; the user's folder holds the last part of each.
    ``pattern`` is what a thing looks like in there. ``more`` ends the error for a name that does not exist.
    ``parts`` are files of a folder, each of which shows what it is.
    """

    noun: str
    folders: tuple[str, ...]
    pattern: str
    more: str = ""
    parts: tuple[str, ...] = ()

    @property
    def user_folders(self) -> list[Path]:
        """Where the user keeps things of this kind."""
        config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        home = expanded(os.environ.get("AMCSEARCH_HOME") or f"{config}/amcsearch")
        return [home.absolute() / Path(folder).name for folder in self.folders]

    @property
    def shipped_folders(self) -> list[Path]:
        """Where the package keeps them; links are followed."""
        return [Path(str(files("amcsearch") / folder)).resolve() for folder in self.folders]

    @property
    def is_folder(self) -> bool:
        """Whether a thing is a folder of files, not a file."""
        return "/" in self.pattern

    def fits(self, path: Path) -> bool:
        """Whether the path leads to a file or folder, whichever this kind is."""
        return os.path.isdir(path) if self.is_folder else os.path.isfile(path)

    def is_one(self, path: Path) -> bool:
        """Whether the path leads to a folder that looks like this kind, complete or not."""
        return any(os.path.isfile(path / name) for name in self.parts)

    def names(self, path: Path) -> bool:
        """Whether the path may be a name: ``x86_server``, ``x86_server.yaml``, ``configs/devices/x86_server.yaml``."""
        return path.parent.as_posix() in (".", *self.folders)


DEVICES: Final = Kind("device profile", ("configs/devices",), "*.yaml")
TABLES: Final = Kind(
    *("latency table", ("latency_tables",), "*/device.yaml"),
    more=", or make it with `amcsearch table measure CONFIG -o latency_tables/NAME`",
    parts=("device.yaml", "rows.csv"),
)
CONFIGURATIONS: Final = Kind("configuration", ("configs/searches", "configs/sparsify"), "*.yaml")


def listed(kind: Kind) -> dict[str, tuple[Path, ...]]:
    """Every name, with the paths it has; the first is the one that the name means."""
    roots = [*(Path.cwd() / folder for folder in kind.folders), *kind.user_folders, *kind.shipped_folders]
    paths: dict[str, list[Path]] = {}
    for root in roots:
        for match in sorted(root.resolve().glob(kind.pattern)):
            path = match.parent if kind.is_folder else match
            same_name = paths.setdefault(_name(path), [])
            if path not in same_name:  # the current folder may be the checkout that the package runs from
                same_name.append(path)
    return {name: tuple(paths[name]) for name in sorted(paths)}


def _name(path: Path) -> str:
    return path.name.removesuffix(".yaml")


def lookup(kind: Kind, value: Path | str, folder: Path | None = None) -> Path | None:
    """Return the absolute path of what ``value`` names, None where nothing does; ``folder`` is the configuration's."""
    path = expanded(value)
    paths = [Path(os.path.abspath(root / path)) for root in _roots(folder)]
    fitting = [candidate for candidate in paths if kind.fits(candidate)]
    if not fitting and kind.names(path):
        fitting = list(listed(kind).get(_name(path), ()))
    # a file in place of a folder, or the other way round, is for its reader to refuse
    return next(iter([*fitting, *(candidate for candidate in paths if os.path.exists(candidate))]), None)


def find(kind: Kind, value: Path | str, folder: Path | None = None, where: str = "") -> Path:
    """Return the absolute path of what ``value`` names; ``folder`` is the configuration's.

    Raises:
        BadInputError: nothing has that path or name; says ``where`` it was asked, where it was looked for, the nearest
            name and all names.
    """
    path = lookup(kind, value, folder)
    if path is not None:
        return path
    names = listed(kind)
    folders: list[object] = [] if Path(value).is_absolute() else [*_roots(folder)]
    if kind.names(Path(value)):
        folders += [*kind.user_folders, "the package"]
    sort = "folder" if kind.is_folder else "file"
    raise BadInputError(
        f"{where + ': ' if where else ''}{kind.noun} {value} does not exist{_in(folders)}"
        f"{hint(_name(Path(value)), names)}; give a {sort} or one of {', '.join(names)}{kind.more}"
    )


def find_file(value: str, folder: Path, where: str) -> str:
    """Return the absolute path of a file of the user's, looked for from the current folder, then from ``folder``.

    Raises:
        BadInputError: nowhere, or no file; names ``where`` it was asked, the file, and where it was looked for.
    """
    try:
        path = expanded(value)
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}") from error
    candidates = [root / path for root in _roots(folder)]
    existing = next((candidate for candidate in candidates if os.path.exists(candidate)), None)
    if existing is None:
        raise BadInputError(
            f"{where}: file {value} does not exist{_in([*_roots(folder)])}"
            if not path.is_absolute()
            else f"{where}: file {value} does not exist; if another machine wrote that, name the file of this one"
        )
    if not existing.is_file():
        sort = "a folder" if existing.is_dir() else "a device or a pipe"
        raise BadInputError(f"{where}: {existing} is {sort}, expected a file")
    return os.path.abspath(existing)


def writable(kind: Kind, value: Path) -> Path:
    """Where to write anew what ``value`` names: in place, but what the package ships goes to the user's folder.

    Raises:
        BadInputError: as ``find``.
    """
    path = find(kind, value)
    if path.parent not in kind.shipped_folders or kind.fits(value):
        return path
    return kind.user_folders[kind.shipped_folders.index(path.parent)] / path.name


def _roots(folder: Path | None) -> list[Path]:
    """The current folder, then the configuration's where it is another."""
    return list(dict.fromkeys([Path.cwd(), *([] if folder is None else [folder.resolve()])]))


def _in(folders: list[object]) -> str:
    return f" in {' or '.join(map(str, folders))}" if folders else ""
