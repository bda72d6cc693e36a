"""What a run belongs to: one configuration, network and data, kept in its folder and compared before any work."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from amcsearch.config import Config, named_digests, settings_hash
from amcsearch.core import OUT, BadInputError, read_text
from amcsearch.graph import Batch
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.workload import InMemory, Workload, make_workload, trained
from amcsearch.runs import MetricRecord, RunFolder
from amcsearch.training import (
    PROBES,
    Identity,
    batches_of,
    differences,
    load_checkpoint,
    network_difference,
    record_network,
    save_state,
)

__all__ = ["begin_identity", "begin_workload", "end_workload", "new_workload"]

_DEEPEST: Final = 12  # nesting of an object that is handed over in Python
_log = logging.getLogger(__name__)


def begin_workload(
    config: Config, given: InMemory, run: RunFolder | None, observer: Observer
) -> tuple[Workload, Identity]:
    """Make the untrained workload, and see to it that a run goes on with the network and data that it began with.

    Raises:
        BadInputError: as ``new_workload`` and ``begin_identity``.
    """
    workload = new_workload(config, given, observer)
    return workload, begin_identity(config, workload, given, run)


def new_workload(config: Config, given: InMemory, observer: Observer) -> Workload:
    """Make the untrained workload, and tell what is doubtful about it.

    Raises:
        BadInputError: as ``make_workload``.
    """
    workload = make_workload(config, given)
    for text in workload.warnings:
        observer.warn(text)
    return workload


def begin_identity(config: Config, workload: Workload, given: InMemory, run: RunFolder | None) -> Identity:
    """Return what a run belongs to; it goes on with the network and data that it began with.

    Without a run folder there is nothing to compare with.

    Raises:
        BadInputError: another configuration, network or data than the run's; says which.
    """
    now = Identity(
        settings=settings_hash(config),
        named={**named_digests(config), **_objects(given)},
        network=record_network(workload.model, _probe(workload)),
        splits=workload.records,
        metric=MetricRecord.of(workload.task.metric),
    )
    return now if run is None else _compared(run, now)


def _probe(workload: Workload) -> Batch:
    """Samples on which the network is recorded."""
    return next(iter(batches_of(workload.splits.calibration, PROBES, "calibration")))


def _compared(run: RunFolder, now: Identity) -> Identity:
    """Return the identity in the run folder, which the job fits; write it if the run has just begun."""
    before = _read(run)
    if before is None:
        states = (run.study_db, run.training_state, run.finetuning_state, run.round_state(1), run.trained_safetensors)
        left = next((path for path in states if path.exists()), None)
        if left is not None:
            raise BadInputError(
                f"run folder {run.path} holds {left.name} but no {run.identity_json.name}: an older version made it, "
                f"or the file was deleted, and its network and data are unknown; name another {OUT}"
            )
        run.write_json(run.identity_json, now)
        return now
    apart = differences(before, now)
    if apart:
        raise _other(run, "; ".join(apart))
    return before


def _read(run: RunFolder) -> Identity | None:
    if not run.identity_json.exists():
        return None
    try:
        return Identity.from_json(json.loads(read_text(run.identity_json)), run.identity_json.name)
    except (json.JSONDecodeError, BadInputError) as error:
        raise BadInputError(f"{run.identity_json} is damaged ({error}); name another {OUT}") from error


def _other(run: RunFolder, how: str) -> BadInputError:
    return BadInputError(
        f"run folder {run.path} belongs to another network or other data: {how}; restore it, or name another {OUT}"
    )


def end_workload(
    config: Config, workload: Workload, identity: Identity, run: RunFolder | None, observer: Observer
) -> tuple[Workload, Identity]:
    """Train the network if the configuration says so, or take the weights that the run has trained before.

    Raises:
        BadInputError: as ``trained``, or trained weights other than those that the run's results are of.
    """
    if config.model.pretrain is None or run is None:
        return trained(config, workload, observer.epoch), identity
    kept = _kept_weights(workload, run.trained_safetensors)
    done = trained(config, workload, observer.epoch, is_trained=kept)
    record = record_network(workload.model, _probe(workload))
    if identity.trained is not None:
        difference = network_difference(identity.trained, record, "trained")
        if difference:
            raise _other(run, difference)
    if not kept:
        save_state(workload.model, run.trained_safetensors)
    if identity.trained is None:
        identity = replace(identity, trained=record)
        run.write_json(run.identity_json, identity)
    return done, identity


def _kept_weights(workload: Workload, path: Path) -> bool:
    """Load the weights that the run has trained, if it has; damaged ones are trained again."""
    if not path.exists():
        return False
    try:
        load_checkpoint(workload.model, path)
    except BadInputError as error:
        _log.warning("the run's trained weights are damaged and will be trained again: %s", error)
        return False
    return True


def _objects(given: InMemory) -> dict[str, str]:
    """Digests of the objects that were handed over in Python in place of what keys name, by key."""
    objects = {
        "device.table": given.table,
        "device.profile": given.profile,
        "search.agent": given.agent,
        "selection.criterion": given.criterion,
        "selection.selector": given.selector,
        "task": given.task,
        "recovery.finetune.factory": given.finetune,
    }
    return {key: _digest(value) for key, value in objects.items() if value is not None}


def _digest(value: object) -> str:
    total = hashlib.sha256()
    for part in _parts(value, 0):
        total.update(part + b"\0")
    return total.hexdigest()[:12]


def _parts(value: object, depth: int) -> list[bytes]:
    """Content of an object as bytes: its type and, as deep as that goes, its values; never an address."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if depth > _DEEPEST:
        return [kind]
    if value is None or isinstance(value, str | bytes | int | float | complex | bool | Path | np.generic):
        return [kind, repr(value).encode()]
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return [kind, str((value.dtype, value.shape)).encode(), np.ascontiguousarray(value).tobytes()]
    if hasattr(value, "to_csv"):  # of a table's rows every one counts, and repr shows a few
        return [kind, value.to_csv().encode()]
    if isinstance(value, Mapping):
        pairs = sorted((_parts(key, depth + 1), _parts(inner, depth + 1)) for key, inner in value.items())
        return [kind, *(part for pair in pairs for each in pair for part in each)]
    if isinstance(value, list | tuple):
        return [kind, *(part for inner in value for part in _parts(inner, depth + 1))]
    if isinstance(value, set | frozenset):
        return [kind, *(part for each in sorted(_parts(inner, depth + 1) for inner in value) for part in each)]
    if callable(value) and hasattr(value, "__qualname__"):
        return [kind, f"{value.__module__}.{value.__qualname__}".encode()]
    return [kind, *_parts(_fields(value), depth + 1)]


def _fields(value: object) -> dict[str, object]:
    if dataclasses.is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    return dict(getattr(value, "__dict__", {}))
