"""Latency tables as text for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amcsearch.cli.text import columns

if TYPE_CHECKING:
    from amcsearch.costs.latency_table import LatencyTable

__all__ = ["check_text", "table_text"]

_HEAD = ["", "variants", "mean error", "median", "worst", "within 5 %", "within 10 %", "rank corr.", "measured twice"]


def _errors(name: str, found: Mapping[str, Any] | None, otherwise: str = "not checked") -> list[str]:
    if not found:
        return [name, otherwise, *[""] * (len(_HEAD) - 2)]
    spearman = found.get("spearman")
    return [
        name,
        str(found["variants"]),
        *(f"{found[key]:.2%}" for key in ("mape", "median")),
        *(f"{found[key]:.0%}" for key in ("worst", "within_5", "within_10")),
        "" if spearman is None else f"{spearman:.4f}",
        "once" if found["noise_mape"] is None else f"{found['noise_mape']:.2%}",
    ]


def check_text(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Errors of a table on networks measured now, as it was and after anchors, beside the noise of measuring twice."""
    rows = [_HEAD, _errors("table", before, "cannot predict it")] + ([_errors("after anchors", after)] if after else [])
    return "\n".join(columns(rows))


def table_text(table: "LatencyTable", folder: Path) -> str:
    """Provenance, networks with their accuracy on variants left out, and the channel grid of each."""
    where = table.provenance
    settings = ", ".join(f"{key} {where.get(key)}" for key in ("threads", "batch", "dtype", "provider"))
    lines = [
        f"{folder}: {len(table.rows)} rows, {len(table.networks)} networks",
        f"{where.get('cpu')}, {where.get('cores')} cores, ONNX Runtime {where.get('ort_version')}, {settings}, "
        f"NCHWc block {where.get('nchwc_block')}, measured {where.get('timestamp')}",
        "",
        *columns([_HEAD, *(_errors(name, entry.get("accuracy")) for name, entry in table.networks.items())]),
        "",
    ]
    for name, entry in table.networks.items():
        tried = (entry.get("channel_grid") or {}).get("tried", [])
        steps = ", ".join(f"{s['multiple']}: {s['time_saved']:.0%} time for {s['macs_saved']:.0%} MACs" for s in tried)
        lines.append(f"{name}: channel multiple {entry.get('channel_multiple')}; a finer grid of … saves {steps}")
        drift = entry.get("drift")
        if drift:
            lines.append(f"{name}: {_plain(drift)}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
