"""Measuring and predicting as functions: objects in, typed results out. The command line calls exactly these."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amcsearch import jobs
from amcsearch.api.one_job import one_job
from amcsearch.config import Config
from amcsearch.core import BadInputError
from amcsearch.jobs import (
    Observer,
    SearchResult,
    Settings,
    given_path,
    given_policy,
    in_folder,
    make_request,
    watcher,
)
from amcsearch.runs import RunFolder, expanded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from amcsearch.costs import DeviceProfile, LatencyTable
    from amcsearch.methods import Criterion, Selector
    from amcsearch.training import Task

__all__ = ["energy", "measure_latency_table", "sensitivity", "verify"]


@one_job()
def measure_latency_table(
    model: "nn.Module | None" = None,
    example: "Tensor | None" = None,
    *,
    config: Config | Path | str | None = None,
    name: str | None = None,
    known: "LatencyTable | None" = None,
    variants: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> "LatencyTable":
    """Measure a network and pruned variants of it on this machine, and return its latency table.

    Args:
        model: the network; its weights need no training. It is copied.
        example: one input with batch dimension, (1, …); of several the first counts.
        config: as for ``search``.
        name: of the network in the table.
        known: this machine's table that is there already; it is extended. Not with ``folder``.
        variants: networks to measure; None measures as many as are needed.
        minutes: bound of the measuring.
        seed: of the variants.
        settings: as for ``search``; section ``device`` has threads, batch and data type.
        folder: of the table, begun or extended there; it keeps what is measured. None keeps nothing if interrupted.
        resume: go on with what an interrupted measuring left in ``folder``, or begin one there.
        observer: as for ``search``.

    Raises:
        BadInputError: a network that cannot be exported, ``known`` of another device or setting, or a ``folder`` that
            cannot be used or holds measurements without ``resume``.
    """
    request, given = make_request(config, settings, {"name": name, "seed": seed}, model, example=example)
    observed, path = watcher(observer), given_path(folder)
    if path is None:
        return jobs.measure_table(request, observed, given, variants=variants, known=known, minutes=minutes)
    if known is not None:
        raise BadInputError("known and folder are both given; a folder extends its own table: leave one out")
    return jobs.measure_into(path, request, observed, given, variants=variants, minutes=minutes, resume=resume)


@one_job()
def energy(
    model: "nn.Module | None" = None,
    example: "Tensor | None" = None,
    *,
    config: Config | Path | str | None = None,
    profile: "DeviceProfile | Path | str | None" = None,
    table: "LatencyTable | Path | str | None" = None,
    policy: Mapping[str, int] | Path | str | None = None,
    densities: Path | str | None = None,
    storage: str = "bitmap",
    measure: bool = False,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    observer: Observer | None = None,
) -> jobs.EnergyReport:
    """Predict the energy of every layer on a device, dense beside pruned and sparse; ``.layers`` is a table of it.

    Args:
        model: as for ``measure_latency_table``.
        example: as for ``measure_latency_table``.
        config: as for ``search``.
        profile: as for ``search``; needed here.
        table: as for ``search``; needed for static power.
        policy: as for ``prune``; shown as ``pruned``.
        densities: ``densities.csv`` of a ``sparsify`` run, shown as ``sparse``.
        storage: of sparse weights in DRAM: ``dense``, ``bitmap``, ``csr`` or ``run_length``.
        measure: also measure on this machine, if it has a counter of energy.
        seed: as for ``search``.
        settings: as for ``search``; section ``device`` has the batch.
        folder: where to write the table and a picture; None writes nothing.
        observer: as for ``search``.

    Raises:
        BadInputError: no profile, a policy or densities that do not fit, no counter to measure with; or as ``search``.
    """
    named = {"device.profile": profile, "device.table": table, "seed": seed}
    request, given = make_request(config, settings, named, model, example=example)
    path, observed = given_path(folder), watcher(observer)
    kept, used = given_policy(policy), given_path(densities)
    return jobs.energy_report(
        *(request, path, observed, given), policy=kept, densities=used, storage=storage, measure=measure
    )


@one_job()
def sensitivity(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    config: Config | Path | str | None = None,
    criterion: "Criterion | str | None" = None,
    selector: "Selector | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
    points: int = 5,
    joint: int = 50,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    observer: Observer | None = None,
) -> jobs.Sensitivity:
    """Prune one group at a time and return loss and accuracy at every width; ``.curves`` is a table of them.

    Args:
        model: as for ``search``.
        data: as for ``search``.
        config: as for ``search``.
        criterion: as for ``search``.
        selector: as for ``search``.
        task: as for ``search``.
        points: widths of each group.
        joint: random policies whose loss is held against the sum over their groups.
        seed: as for ``search``.
        settings: as for ``search``.
        folder: where to write tables and pictures; None writes nothing.
        observer: as for ``search``.

    Raises:
        BadInputError: fewer than 2 points; or as ``search``.
    """
    named = {"selection.criterion": criterion, "selection.selector": selector, "task": task, "seed": seed}
    request, given = make_request(config, settings, named, model, data)
    return jobs.sensitivity(request, given_path(folder), watcher(observer), given, points=points, joint=joint)


@one_job()
def verify(
    run: Path | str,
    result: Path | str,
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    observer: Observer | None = None,
) -> SearchResult | jobs.SparsifyResult:
    """Finish a run of ``device.location = "offline"`` with what its kit measured on the device.

    ``amcsearch verify kit RUN -o verify.pyz`` writes the kit. The measurement chooses among the finalists; where it
    chooses another one than the prediction did, that one is fine-tuned and delivered. Of ``sparsify`` the one network
    stays. The report and the summary are written anew and name the device.

    Args:
        run: run folder of ``search``, ``prune`` or ``sparsify``.
        result: the file that the kit wrote.
        model: the dense network, where the run was made with one in memory.
        data: likewise.
        observer: as for ``search``.

    Raises:
        BadInputError: a run that has not finished or was measured here; a result that is damaged, of another kit or
            setting, or holds times that no device can reach; or as ``search``.
    """
    folder = RunFolder.open(expanded(run))
    request, given = make_request(folder.config_yaml, None, {}, model, data)
    job = partial(jobs.verify, result=expanded(result))
    return in_folder(request, folder.path, True, job, watcher(observer), given)
