"""Results as text for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amcsearch.costs.latency_table import LatencyTable

__all__ = ["plan_text", "summary_text", "table_text"]


def summary_text(summary: Mapping[str, Any], folder: Path) -> str:
    """What the user got: dense, pruned and fine-tuned side by side, and where the files are."""
    rows = [["", "accuracy", "MACs", "parameters", "predicted ms", "measured ms (95 % interval)", "energy mJ"]]
    for name in ("dense", "pruned", "finetuned"):
        block = summary[name]
        measured = block["latency_ms_measured"]
        rows.append(
            [
                name,
                f"{100 * block['accuracy']:.2f} %",
                _count(block["macs"]),
                _count(block["params"]),
                _number(block["latency_ms_predicted"]),
                f"{measured['median']:.3f} ({measured['low']:.3f}–{measured['high']:.3f})",
                _number(block["energy_mj"]),
            ]
        )
    ratio = summary["latency_ratio"]
    lines = [
        *_table(rows),
        "",
        f"latency: {ratio['median']:.3f}x of dense, measured in pairs ({ratio['low']:.3f}–{ratio['high']:.3f})",
        f"{summary['agent']}: {summary['evaluations']} evaluations; {summary['seconds']['total']:.0f} s in all",
        *(f"WARNING: {text}" for text in summary["warnings"]),
        f"model: {folder / 'pruned.onnx'}",
        f"report: {folder / 'report.html'}",
    ]
    return "\n".join(lines)


def plan_text(plan: Mapping[str, Any]) -> str:
    """What a search would do."""
    network, samples, seconds = plan["network"], plan["samples"], plan["expected_seconds"]
    rows = [["cost", "dense", "limit", "largest uniform policy"]]
    for name, dense in plan["dense"].items():
        limit = plan["budget"].get(name)
        rows.append(
            [name, f"{dense:.6g}", "" if limit is None else f"{limit:.6g}", f"{plan['largest_uniform'][name]:.6g}"]
        )
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if name != "total")
    lines = [
        f"{plan['name']}: {network['factory']}, {network['layers']} layers, {network['groups']} channel groups",
        *(f"  not pruned: {text}" for text in network["skipped"]),
        "samples: " + ", ".join(f"{name} {count}" for name, count in samples.items()),
        f"channel multiple {plan['channel_multiple']}, {float(plan['policies']):.3g} policies",
        *_table(rows),
        f"{plan['agent']}: {plan['trials']} evaluations" + (f", then {plan['baseline']}" if plan["baseline"] else ""),
        *(f"WARNING: {text}" for text in plan["warnings"]),
        f"expected time: about {seconds['total'] / 60:.1f} minutes ({parts})",
    ]
    return "\n".join(lines)


def table_text(table: "LatencyTable", folder: Path) -> str:
    """Provenance, accuracy and coverage of a latency table."""
    lines = [f"{folder}: {len(table.rows)} rows, channel multiple {table.channel_multiple}"]
    lines += [f"  {key}: {_plain(value)}" for key, value in table.info.items()]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
