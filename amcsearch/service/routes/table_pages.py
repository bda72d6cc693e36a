"""Pages of latency tables: where each was measured, its error, and the cliffs of its layers.

A cliff is a width at which a layer is slower than at some wider one: pruning to it costs accuracy and time.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Query, Response

from amcsearch.config import TABLES, listed, read_latency_table
from amcsearch.core import BadInputError
from amcsearch.costs import LatencyTable, NetworkEntry
from amcsearch.reporting import layer_curves
from amcsearch.service.access import Caller
from amcsearch.service.drawings import LayerDrawing, layer_drawing
from amcsearch.service.records import JobState
from amcsearch.service.rendering import drawn
from amcsearch.service.routes.pages import TABLE_KINDS, Reader
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER"]

ROUTER = APIRouter(include_in_schema=False)
Running = Annotated[Service, Depends(running_service)]
_HERE: Final = "/page/tables"
_LAYERS: Final = 12  # the costliest that are drawn
_KEPT: Final = 16  # networks whose curves are kept, each a second of work


@dataclass(frozen=True)
class _Network:
    """One network of a table; the errors are those of variants that were left out, as texts."""

    name: str
    variants: str
    mean: str
    worst: str
    multiple: int | None = None
    cliffs: int = 0
    widths: int = 0
    layers: tuple[LayerDrawing, ...] = ()
    layer_count: int = 0


@dataclass(frozen=True)
class _Table:
    """A table with its networks, or why it cannot be read."""

    name: str
    problem: str = ""
    device: str = ""
    rows: int = 0
    networks: tuple[_Network, ...] = ()


def _network(name: str, entry: NetworkEntry) -> _Network:
    accuracy = entry.accuracy
    shares = (None, None) if accuracy is None else (accuracy.mape, accuracy.worst)
    count = "not checked" if accuracy is None or accuracy.variants is None else str(accuracy.variants)
    mean, worst = ("–" if share is None else f"{share:.1%}" for share in shares)
    return _Network(name, count, mean, worst)


def _with_cliffs(table: LatencyTable, network: str) -> _Network:
    model, plain = table.bind(network), _network(network, table.networks[network])
    curves = layer_curves(table, model)
    multiple = model.channel_multiple or 1
    return _Network(
        *(network, plain.variants, plain.mean, plain.worst),
        multiple=multiple,
        cliffs=sum(len(curve.cliffs) for curve in curves),
        widths=sum(len(curve.widths) for curve in curves),
        layers=tuple(layer_drawing(curve, multiple) for curve in curves[:_LAYERS]),
        layer_count=len(curves),
    )


def _described(name: str, table: LatencyTable, networks: tuple[_Network, ...]) -> _Table:
    where = table.provenance
    text = f"{where.cpu}, threads {where.threads}, batch {where.batch}, {where.dtype}"
    return _Table(name, device=text, rows=len(table.rows), networks=networks)


def _short(name: str, folder: Path) -> _Table:
    try:
        table = read_latency_table(folder)
    except BadInputError as error:
        return _Table(name, problem=str(error))
    return _described(name, table, tuple(_network(*item) for item in table.networks.items()))


@lru_cache(_KEPT)
def _whole(name: str, folder: Path, network: str | None, changed_ns: int) -> _Table:
    """A table with the cliffs of one network, the first by default; ``changed_ns`` tells it from an older one."""
    del changed_ns
    table = read_latency_table(folder)
    if network is not None and network not in table.networks:
        raise HTTPException(404, f"table {name} has no network {network[:80]!r}; its page without one names them")
    shown = next(iter(table.networks)) if network is None else network
    each = (
        _with_cliffs(table, other) if other == shown else _network(other, entry)
        for other, entry in table.networks.items()
    )
    return _described(name, table, tuple(each))


@ROUTER.get("/page/tables")
def tables(caller: Reader) -> Response:
    """Latency tables that have names, with their error."""
    shown = [_short(name, paths[0]) for name, paths in listed(TABLES).items()]
    values = {"caller": caller, "here": _HERE, "may_send": caller.may(Scope.SUBMIT), "tables": shown}
    return drawn("tables.html", values)


@ROUTER.get("/page/tables/{name}")
def of_table(caller: Reader, name: str, network: Annotated[str | None, Query(max_length=200)] = None) -> Response:
    """One table: latency over channels with the cliffs of one of its networks, and the errors of all.

    Raises:
        HTTPException: there is no such table, or it has no such network.
        BadInputError: it cannot be read.
    """
    paths = listed(TABLES).get(name)
    if paths is None:
        raise HTTPException(404, f"there is no table {name[:80]!r}; {_HERE} lists them")
    return _drawn(caller, name, paths[0], network, f"{_HERE}/{quote(name)}")


@ROUTER.get("/page/jobs/{job}/table")
def of_job(
    service: Running, caller: Reader, job: str, network: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """The table that a job has made, as ``of_table``.

    Raises:
        HTTPException: the job has made none, or it has no such network.
        BadInputError: it cannot be read.
    """
    record = service.table.get(job)
    if record.kind not in TABLE_KINDS or record.state is not JobState.DONE:
        raise HTTPException(404, f"job {job} is a {record.kind}, {record.state}, and has made no latency table")
    return _drawn(caller, record.name, service.folder(record), network, f"/page/jobs/{job}/table")


def _drawn(caller: Caller, name: str, folder: Path, network: str | None, address: str) -> Response:
    changed_ns = max(path.stat().st_mtime_ns for path in (folder, *folder.glob("*")))
    table = _whole(name, folder, network, changed_ns)
    chosen = next(each for each in table.networks if each.multiple is not None)
    values = {"caller": caller, "here": _HERE, "address": address, "table": table, "network": chosen}
    return drawn("table.html", values)
