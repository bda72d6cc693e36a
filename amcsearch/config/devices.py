"""Devices on disk: profiles, and latency tables as a folder of readable rows beside their provenance."""

import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from amcsearch.config.lookup import DEVICES, TABLES, find
from amcsearch.config.messages import hint
from amcsearch.config.yaml_text import read_yaml, to_yaml
from amcsearch.core import BadInputError
from amcsearch.costs import DeviceProfile, LatencyTable, read_rows, write_rows

__all__ = ["DEVICE_FILE", "ROWS_FILE", "read_device", "read_latency_table", "write_latency_table"]

DEVICE_FILE: Final = "device.yaml"
ROWS_FILE: Final = "rows.csv"


def read_device(path: Path | str) -> DeviceProfile:
    """Read a device profile, a file or a name such as ``x86_server``.

    Raises:
        BadInputError: nothing has that name, or the file cannot be read, is not YAML, or holds keys or values a
            profile does not take.
    """
    path = Path(path) if Path(path).is_absolute() else find(DEVICES, path)
    data, _ = read_yaml(path)
    try:
        return DeviceProfile.from_mapping(data)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from error


def read_latency_table(folder: Path | str) -> LatencyTable:
    """Read a latency table, a folder or a name: ``rows.csv``, ``device.yaml`` (provenance, calibration, accuracy).

    Raises:
        BadInputError: no such table (says how to measure one), or a file of it is missing or damaged.
    """
    folder = Path(folder) if Path(folder).is_absolute() else find(TABLES, folder)
    if not folder.is_dir():
        others = sorted(p.parent.name for p in folder.parent.glob(f"*/{DEVICE_FILE}"))
        raise BadInputError(
            f"latency table {folder} does not exist{hint(folder.name, others)}; "
            f"make it with `amcsearch table measure CONFIG -o {folder}`"
        )
    for name in (DEVICE_FILE, ROWS_FILE):
        if not (folder / name).is_file():
            raise BadInputError(
                f"latency table {folder} has no {name}; make it again with `amcsearch table measure CONFIG -o {folder}`"
            )
    info, _ = read_yaml(folder / DEVICE_FILE)
    try:
        return LatencyTable.from_mapping(read_rows(folder / ROWS_FILE), info)
    except BadInputError as error:
        raise BadInputError(f"latency table {folder}: {error}") from error


def write_latency_table(table: LatencyTable, folder: Path | str) -> None:
    """Write a latency table; each file appears whole or not at all, the provenance last.

    Raises:
        BadInputError: the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows, device = folder / f".{ROWS_FILE}.tmp", folder / f".{DEVICE_FILE}.tmp"
        write_rows(table.rows, rows)
        device.write_text(to_yaml(_plain(table.as_mapping())), encoding="utf-8")
        os.replace(rows, folder / ROWS_FILE)
        os.replace(device, folder / DEVICE_FILE)
    except OSError as error:
        raise BadInputError(f"cannot write latency table {folder}: {error.strerror}; give another -o") from error


def _plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and tuples into what YAML holds."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value
