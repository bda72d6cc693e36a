"""What tells configurations apart: the files and code that they name, and the hashes of what decides a run."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from amcsearch.config.lookup import DEVICES, TABLES, Kind, listed
from amcsearch.config.schema import EXACT, Config
from amcsearch.config.sections import AUTO
from amcsearch.config.table_folder import TABLE_FILES
from amcsearch.config.yaml_text import parse_yaml, to_yaml
from amcsearch.core import BadInputError, open_file

__all__ = [
    "AFTER_SEARCH",
    "EVALUATES",
    "MOST_BYTES",
    "PATHS",
    "SPECS",
    "WORDS",
    "config_hash",
    "digest",
    "evaluation_hash",
    "files_here",
    "named_digests",
    "settings_hash",
    "texts_at",
    "trial_counts",
    "trial_settings",
]

MOST_BYTES: Final = 2**34  # of a file that a configuration names: 16 GiB, a checkpoint of 4e9 parameters

AFTER_SEARCH: Final = (
    *("search.further_trials", "recovery.finetune", "search.finalists", "search.finalist_epochs"),
    *("device.rounds", "device.patience_s", "device.export", "device.location"),
)
"""Keys that change no trial which a search has stored: a run goes on with other ones."""
EVALUATES: Final = ("seed", "model", "data", "task", "selection", "recovery", "evaluation")
"""Sections that decide what an evaluation of a policy gives; of ``recovery`` all but ``finetune``."""

PATHS: Final[dict[tuple[str, ...], Kind | None]] = {
    ("model", "checkpoint"): None,
    ("device", "profile"): DEVICES,
    ("device", "table"): TABLES,
    ("search", "start"): None,
    ("prune", "policy"): None,
}
"""Keys that name files, and what kind of things they name where those have names."""
WORDS: Final[dict[tuple[str, ...], tuple[str, ...]]] = {
    ("search", "start"): (EXACT, "none"),
    ("device", "table"): (AUTO,),
}
"""Words that such a key takes in place of a file."""
SPECS: Final = (
    ("model", "factory"),
    ("data", "factory"),
    ("data", "collate"),
    ("task",),
    ("task", "name"),
    ("task", "params", "loss"),
    ("task", "params", "metric"),
    ("model", "pretrain", "augmentation"),
    ("recovery", "finetune", "factory"),
    ("recovery", "finetune", "augmentation"),
    ("sparsify", "training", "augmentation"),
    ("device", "runtime"),
    ("device", "costs", "*"),
    ("device", "costs", "*", "model"),
    ("selection", "criterion"),
    ("selection", "selector"),
    ("search", "agent"),
    ("search", "baseline"),
    ("search", "reward", "name"),
    ("sparsify", "method"),
    ("sparsify", "criterion"),
)
"""Keys that may name a class or function as file.py:Class; * stands for every key of a mapping."""


def digest(value: str | None) -> str | None:
    """Replace an absolute path by a digest of what it holds; anything else comes back as it is.

    A latency table is digested by the names and contents of its files. Another folder, a device or a missing path
    counts as missing: whoever reads it refuses it.

    Raises:
        BadInputError: as ``check_file``.
    """
    if value is None or not Path(value.partition(".py:")[0]).is_absolute():
        return value
    stem, is_factory, name = value.partition(".py:")
    path = Path(stem + ".py") if is_factory else Path(value)
    table = [path / file for file in sorted(TABLE_FILES) if os.path.isfile(path / file)]
    files = table if TABLES.is_one(path) else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(str(file.relative_to(path)).encode(errors="surrogateescape") + b"\0")
        if not os.path.isfile(file):
            total.update(b"missing")
            continue
        with open_file(file, "file", MOST_BYTES) as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest() + (":" + name if is_factory else "")


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits of the canonical JSON.

    Named files count by content, not by place: the hash survives a move to another folder or machine, and changes
    when a latency table is measured again.
    """
    data = config.model_dump(mode="json")
    for keys in (*PATHS, *SPECS):
        for _, holder, key in texts_at(data, keys):
            holder[key] = digest(holder[key])
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def settings_hash(config: Config) -> str:
    """Twelve hexadecimal digits of what decides trials, without what keys of files and of code name."""
    data = _before_delivery(config.model_dump(mode="json"))
    for keys in (*PATHS, *SPECS):
        for _, holder, key in list(texts_at(data, keys)):
            holder[key] = None
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def evaluation_hash(config: Config) -> str:
    """Twelve hexadecimal digits of what decides the evaluation of a policy, without what keys of files and code name.

    The budget, the device (but for its data type) and the agent decide which policies are evaluated, not how.
    """
    data = config.model_dump(mode="json")
    for keys in (*PATHS, *SPECS):
        for _, holder, key in list(texts_at(data, keys)):
            holder[key] = None
    decides = {key: data[key] for key in EVALUATES if key != "recovery"}
    recovery = {key: value for key, value in data["recovery"].items() if key != "finetune"}
    text = json.dumps({**decides, "recovery": recovery, "dtype": data["device"]["dtype"]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def trial_settings(text: str) -> str:
    """Return the text of a configuration without ``AFTER_SEARCH``; one that is damaged comes back as it is."""
    data = _parsed(text)
    return text if data is None else to_yaml(_before_delivery(data))


def trial_counts(text: str) -> tuple[int | None, tuple[int, ...]]:
    """Return ``search.trials`` and ``search.further_trials`` of the text of a run's configuration.

    What is not there or damaged is None and ``()``.
    """
    section = (_parsed(text) or {}).get("search")
    keys = section if isinstance(section, dict) else {}
    trials, counts = keys.get("trials"), keys.get("further_trials")
    further = tuple(count for count in counts if isinstance(count, int)) if isinstance(counts, list) else ()
    return (trials if isinstance(trials, int) else None), further


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        data, _ = parse_yaml(text, "configuration")
    except BadInputError:
        return None
    return data if isinstance(data, dict) else None


def _before_delivery(data: dict[str, Any]) -> dict[str, Any]:
    """Remove ``AFTER_SEARCH`` from the plain values of a configuration, in place."""
    for key in AFTER_SEARCH:
        section, _, name = key.partition(".")
        if isinstance(data.get(section), dict):
            data[section].pop(name, None)
    return data


def named_digests(config: Config) -> dict[str, str]:
    """Digests of what the configuration names, by dotted key: files by their content, registered names as they are.

    The factories of the network and of the data are left out: these count by what they give.
    """
    data = config.model_dump(mode="json")
    texts = (text for keys in (*PATHS, *SPECS) if keys[-1] != "factory" for text in texts_at(data, keys))
    return {".".join(path): str(digest(holder[key])) for path, holder, key in texts}


def files_here(text: str, sent: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the text of a run's configuration of another machine with the files of this one in place of its.

    ``sent`` are paths there with those here of the same files. A device or a table whose name is known here is named by
    it. With it come the files that are not here, by dotted key; a damaged text comes back as it is.
    """
    data, missing = _parsed(text), dict[str, str]()
    for keys, path, holder, key in _named(data or {}):
        value = holder[key]
        if value in sent:
            holder[key] = sent[value]
        elif not os.path.lexists(value.partition(".py:")[0] + ".py" if ".py:" in value else value):
            kind, name = PATHS.get(keys), Path(value).name.removesuffix(".yaml")
            if kind is not None and name in listed(kind):
                holder[key] = name
            else:
                missing[".".join(path)] = value
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("# "))
    return (text if data is None else head + to_yaml(data)), missing


def _named(data: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], str]]:
    """Keys of ``PATHS`` and ``SPECS`` that name a file by its absolute path, with what ``texts_at`` gives of each."""
    for keys in (*PATHS, *SPECS):
        for path, holder, key in texts_at(data, keys):
            if Path(holder[key]).is_absolute():
                yield keys, path, holder, key


def texts_at(data: dict[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any], str]]:
    """Texts at a path of keys, each as its path, the mapping that holds it and its key there."""
    first, *later = keys
    for key in list(data) if first == "*" else [first]:
        inner = data.get(key)
        if not later and isinstance(inner, str):
            yield (key,), data, key
        elif later and isinstance(inner, dict):
            yield from (((key, *path), holder, last) for path, holder, last in texts_at(inner, tuple(later)))
