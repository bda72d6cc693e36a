"""Requests: a configuration with what is in memory beside it, and the run folder that a request works in."""

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from torch import Tensor, nn

from amcsearch.config import (
    Config,
    config_hash,
    dump,
    from_mapping,
    load,
    parse_mapping,
    trial_counts,
    trial_settings,
)
from amcsearch.core import OUT, RESUME, BadInputError, DeliveryError, InfeasibleBudgetError, PruningPolicy, read_text
from amcsearch.costs import DeviceProfile, LatencyTable
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.workload import InMemory
from amcsearch.runs import RunFolder, Summary, expanded

__all__ = [
    "Settings",
    "as_begun",
    "default_folder",
    "extended",
    "given_path",
    "given_policy",
    "in_folder",
    "make_request",
]

Settings = Mapping[str, object]
"""Keys of the configuration by dotted name, such as ``search.trials``, and their values."""

Result = TypeVar("Result", covariant=True)


class _Work(Protocol[Result]):
    """A job: ``search``, ``prune`` and the like."""

    def __call__(self, config: Config, run: RunFolder, /, *, observer: Observer, given: InMemory) -> Result: ...


_OBJECTS: Final = {
    "device.table": "table",
    "device.profile": "profile",
    "search.agent": "agent",
    "selection.criterion": "criterion",
    "selection.selector": "selector",
    "task": "task",
    "recovery.finetune.factory": "finetune",
}
"""Keys of the configuration that also take an object → its field of ``InMemory``."""

_PLAIN_OBJECTS: Final = ("device.table", "device.profile", "recovery.finetune.factory")
"""Keys that are null where an object is given: there is no class of which the key could keep the name."""


def make_request(
    config: Config | Path | str | None,
    settings: Settings | None,
    named: Settings,
    model: nn.Module | None,
    data: object = None,
    example: Tensor | None = None,
) -> tuple[Config, InMemory]:
    """Return the configuration and what is in memory; of values, the later wins: ``config``, ``settings``, ``named``.

    ``named`` maps keys of the configuration to values; None leaves a key as it is.

    Raises:
        BadInputError: no network or no data, a model that is no module, an example that is no tensor, or as
            ``config.from_mapping``.
    """
    _check_types(model, example)
    if settings is not None and not isinstance(settings, Mapping):
        raise BadInputError(f"settings = {settings!r:.60}, expected keys with values, such as {{'search.batch': 4}}")
    if config is None:
        _check_given(model, data if example is None else example)
    given = {key: value for key, value in named.items() if value is not None}
    objects: dict[str, Any] = {
        field: given[key]
        for key, field in _OBJECTS.items()
        if not isinstance(given.get(key), str | Path | Mapping | None)
    }
    _check_device(objects)
    keys = {key: _as_text(value) for key, value in {**(settings or {}), **given}.items()}
    keys |= {key: None for key in _PLAIN_OBJECTS if _OBJECTS[key] in objects}
    if model is not None:
        keys |= {"model.factory": None, "model.checkpoint": None, "model.pretrain": None}
    if data is not None or example is not None:
        keys["data.factory"] = None
    return _configured(config, keys), InMemory(model=model, data=data, example=example, **objects)


def _check_types(model: object, example: object) -> None:
    for name, value, kind in (("model", model, nn.Module), ("example", example, Tensor)):
        if value is not None and not isinstance(value, kind):
            given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise BadInputError(
                f"{name} is {given}, expected an object of torch.{'nn.' * (kind is nn.Module)}{kind.__name__}"
            )


def _check_device(objects: Mapping[str, object]) -> None:
    for name, kind in (("table", LatencyTable), ("profile", DeviceProfile)):
        if name in objects and not isinstance(objects[name], kind):
            raise BadInputError(
                f"{name} = {objects[name]!r:.60} is a {type(objects[name]).__name__}, expected its path or name, or a "
                f"{kind.__name__}"
            )


def _check_given(model: object, data: object) -> None:
    if model is None:
        raise BadInputError("no network: hand over model, a trained torch.nn.Module, or config, a configuration")
    if data is None:
        raise BadInputError(
            "no data: hand over data (to price or to time a network: example, one input), or config, a configuration"
        )


def _configured(config: Config | Path | str | None, keys: Settings) -> Config:
    """Return a configuration with some of its keys, by dotted name, replaced."""
    if isinstance(config, Config) and not keys:
        return config
    if isinstance(config, Path | str):
        return load(config, keys=keys)
    return from_mapping({} if config is None else config.model_dump(mode="json"), "", keys)


def as_begun(config: Config, config_yaml: Path) -> Config:
    """Return a configuration with the selection of a run's ``config.yaml`` where it leaves that open.

    A file that is damaged or not there decides nothing.
    """
    if not config.selection.is_open or not config_yaml.exists():
        return config
    try:
        values, _ = parse_mapping(read_text(config_yaml), str(config_yaml))
        return _configured(config, {"selection": values["selection"]})
    except (BadInputError, KeyError):
        return config


def _as_text(value: object) -> object:
    """Return a value of the configuration: paths as text, objects by the name of their class."""
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool | Mapping | list | tuple):
        return value
    return f"{type(value).__module__}:{type(value).__qualname__}"


def in_folder(
    request: Config,
    folder: Path | str | None,
    resume: bool,
    work: _Work[Result],
    observer: Observer,
    given: InMemory,
    *,
    anew: bool = False,
) -> Result:
    """Work in a run folder; a temporary one goes with the result, and stays where the work broke off.

    With ``resume`` a run also begins where there is none, so that a restarted batch job can always ask for it: the
    observer is told, for a wrong folder would go unnoticed.
    ``anew`` lets a run go on with other keys of ``AFTER_SEARCH``.
    """
    path = Path(tempfile.mkdtemp(prefix="amcsearch-")) / request.name if folder is None else expanded(folder)
    asked = request
    if resume:
        if not RunFolder(path).config_yaml.exists():
            observer.phase(f"Nothing to resume in {path}: a new run begins")
        request = as_begun(request, RunFolder(path).config_yaml)
    try:
        deciding = trial_settings if anew else None
        with RunFolder.create(path, dump(request), config_hash(request), resume=resume, deciding=deciding) as run:
            result = work(asked, run, observer=observer, given=given)
    except BaseException as error:
        is_refused = isinstance(error, BadInputError | InfeasibleBudgetError)
        is_worth_keeping = any((path / name).exists() for name in ("study.db", "policy.json"))
        if isinstance(error, DeliveryError):
            error.add_note(f"the run is kept: look at it with amcsearch.load({str(path)!r})")
        elif is_worth_keeping and not (is_refused and folder is not None):
            error.add_note(f"what was evaluated is kept: go on with folder={str(path)!r}, resume=True")
        elif folder is None:
            shutil.rmtree(path.parent, ignore_errors=True)
        raise
    if folder is None:
        weakref.finalize(result, shutil.rmtree, path.parent, ignore_errors=True)
    return result


def extended(request: Config, folder: Path | str | None, resume: bool, trials: int | str | None) -> Config:
    """Return the request of a search with the further trials that its run has already, and those of a ``"+200"``.

    A ``"+200"`` adds to what the run has: ``search.trials`` stays the run's, whatever the request says. Where the run
    was stopped while it spent as many as are added, it goes on with these and none is added twice.

    Raises:
        BadInputError: text that is no such number, trials are added to no run, or the request's own further trials are
            not those of the run.
    """
    added = _added(trials) if isinstance(trials, str) else 0
    run = None if folder is None or not resume else RunFolder(expanded(folder))
    if run is None or not run.config_yaml.exists():
        if added:
            raise BadInputError(
                f"trials = +{added} adds to a run, and "
                + (f"{run.path} holds none" if run is not None else "none is resumed")
                + f"; name its {OUT} and go on with {RESUME}"
            )
        return request
    wanted = request.search.further_trials
    first, begun = trial_counts(run.read_config().text)
    first = request.search.trials if first is None or not added else first
    further = max(wanted, begun, key=len)
    if wanted != further[: len(wanted)] or begun != further[: len(begun)]:
        raise BadInputError(
            f"search.further_trials = {list(wanted)}, and the run in {run.path} has {list(begun)}; leave the key out "
            "to go on with those"
        )
    if added and (further[-1:] != (added,) or _is_spent(run, first + sum(further))):
        further = (*further, added)
    counts = {"search.trials": first, "search.further_trials": list(further)}
    return from_mapping(request.model_dump(mode="json"), "", counts)


def _added(trials: str) -> int:
    if not re.fullmatch(r"\+[1-9][0-9]{0,8}", trials):
        raise BadInputError(f"trials = {trials[:40]!r}, expected a count, or +N to add N to a run that is resumed")
    return int(trials)


def _is_spent(run: RunFolder, evaluations: int) -> bool:
    """Whether a run has ended after so many evaluations."""
    summary = run.read_summary() if run.summary_json.exists() else None
    return isinstance(summary, Summary) and summary.evaluations >= evaluations


def default_folder(config: Config, file: Path) -> Path:
    """Return the run folder of a configuration: its own where ``file`` is a run's ``config.yaml``, else a new name."""
    run, identity = RunFolder(file.parent), config_hash(config)
    if file == run.config_yaml and run.read_config().config_hash == identity:
        return run.path
    return Path("runs") / f"{config.name}-{identity}"


def given_policy(policy: Mapping[str, int] | Path | str | None) -> PruningPolicy | None:
    """Return a policy that is handed over, or read from a file."""
    if isinstance(policy, Path | str):
        return PruningPolicy.read(expanded(policy))
    return None if policy is None else PruningPolicy(policy)


def given_path(path: Path | str | None) -> Path | None:
    """Return a path with ``~`` replaced, if there is one."""
    return None if path is None else expanded(path)
