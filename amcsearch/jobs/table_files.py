"""Latency tables in their folders: measure, build and check under the folder's lock, and keep what is measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amcsearch.config import TABLES, Config, TableFolder, check_measuring, read_latency_table, writable
from amcsearch.core import BadInputError
from amcsearch.costs import LatencyTable
from amcsearch.jobs.measurements import Measurements
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.table_check import FRESH, TableCheck, check_table, is_of_machine, machine_folder
from amcsearch.jobs.tables import build_table, measure_table
from amcsearch.jobs.workload import CONFIGURED, InMemory
from amcsearch.measure import merged

__all__ = ["build_into", "check_into", "learning_folder", "measure_into"]


def measure_into(
    folder: Path,
    config: Config,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    variants: int | None = None,
    minutes: float | None = None,
    force: bool = False,
    resume: bool = False,
) -> LatencyTable:
    """Measure a configuration's network for the table in a folder, which is begun or extended.

    The folder is locked all the while. What is measured is kept in it until the table is written.

    Args:
        folder: of the table.
        config: as for ``measure_table``.
        observer: as for ``measure_table``.
        given: as for ``measure_table``.
        variants: as for ``measure_table``.
        minutes: as for ``measure_table``.
        force: replace the table that is there.
        resume: go on with the measurements of an interrupted run, or begin where there are none.

    Raises:
        BadInputError: as ``measure_table``, a folder that is in use, cannot be written or holds other files, or
            measurements of an interrupted run without ``resume``.
    """
    check_measuring(variants, minutes)
    with TableFolder.take(folder) as taken:
        measurements = Measurements(taken.measuring, resume=resume)
        if resume and taken.was_completed:
            return read_latency_table(taken.path.absolute())
        known = None if force else taken.read()
        table = measure_table(
            config, observer, given, variants=variants, known=known, minutes=minutes, measurements=measurements
        )
        taken.write(table, was_measured=True)
    return table


def build_into(
    folder: Path,
    paths: Sequence[Path],
    source: LatencyTable | None = None,
    *,
    known: LatencyTable | None = None,
    force: bool = False,
) -> LatencyTable:
    """Make a table of kits' results in a folder, or extend the one that is there.

    Args:
        folder: of the table.
        paths: as for ``build_table``.
        source: as for ``build_table``.
        known: the table that is extended; None takes the one in the folder.
        force: replace the table in the folder and do not extend it.

    Raises:
        BadInputError: as ``build_table``, or a folder that is in use, cannot be written or holds other files.
    """
    with TableFolder.take(folder) as taken:
        table = build_table(paths, taken.read() if known is None and not force else known, source)
        taken.write(table)
    return table


def check_into(
    folder: Path,
    table: Path | str,
    config: Config,
    observer: Observer,
    *,
    fresh: int = FRESH,
    anchors: int = 0,
    resume: bool = False,
    keep_foreign: bool = False,
) -> TableCheck:
    """Check a table as ``check_table`` and write what was learnt into a folder, which is locked all the while.

    Of another machine's table the anchors make one of this machine, which joins the table that is in the folder.

    Args:
        folder: where to write: see ``learning_folder``.
        table: folder or name of the table.
        config: as for ``check_table``.
        observer: as for ``check_table``.
        fresh: as for ``check_table``.
        anchors: as for ``check_table``.
        resume: as for ``measure_into``.
        keep_foreign: write another machine's table as it is where no anchor corrects it.

    Raises:
        BadInputError: as ``check_table`` and ``measure_into``, or another machine's table without anchors
            and without ``keep_foreign``.
    """
    known = read_latency_table(table)
    is_here = is_of_machine(known, config)
    if not is_here and not anchors and not keep_foreign:
        raise BadInputError(
            f"table check --write: {table} is another machine's or of another setting, and nothing corrects it with "
            "--anchors 0; give --anchors 10, which makes this machine's table of it"
        )
    with TableFolder.take(folder) as taken:
        measurements = Measurements(taken.measuring, resume=resume)
        before = taken.read()
        check = check_table(known, config, observer, fresh=fresh, anchors=anchors, measurements=measurements)
        learnt = check.table if is_here or before is None else merged([check.table, before, check.table])
        taken.write(learnt, was_measured=True)
    return replace(check, table=learnt)


def learning_folder(table: Path, config: Config) -> Path:
    """Where to write what a check of a table learns: in place, or this machine's folder for another machine's table.

    Raises:
        BadInputError: no such table, or ONNX Runtime does not work here.
    """
    return writable(TABLES, table) if is_of_machine(read_latency_table(table), config) else machine_folder(config)
