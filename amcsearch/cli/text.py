"""Results as text for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from amcsearch.reporting import goal_lines

__all__ = ["columns", "energy_text", "plan_text", "sparsify_text", "summary_text"]

_BLOCK: Final = (
    *("macs", "params", "energy_mj"),
    *("latency_ms_predicted", "latency_ms_predicted_sigma", "latency_ms_measured"),
)
"""Keys of a network's block in the summary that are no accuracy and no cost of the user's own."""


def summary_text(summary: Mapping[str, Any], folder: Path) -> str:
    """What the user got: dense, pruned and fine-tuned side by side, and where the files are."""
    delivered = f"accuracy_{summary.get('dtype')}"
    accuracies = ["accuracy", *([delivered] if delivered in summary["finetuned"] else [])]
    further = [key for key in summary["finetuned"] if key not in (*_BLOCK, *accuracies)]
    costs = ["MACs", "parameters", "predicted ms", "measured ms (95 % interval)", "energy mJ", *further]
    rows = [["", *(key.replace("_", " ") for key in accuracies), *costs]]
    for name in ("dense", "pruned", "finetuned"):
        block = summary[name]
        measured = block["latency_ms_measured"]
        rows.append(
            [
                name,
                *(f"{100 * block[key]:.2f} %" if key in block else "" for key in accuracies),
                _count(block["macs"]),
                _count(block["params"]),
                _predicted(block),
                f"{measured['median']:.3f} ({measured['low']:.3f}–{measured['high']:.3f})",
                _number(block["energy_mj"]),
                *(_number(block[name]) for name in further),
            ]
        )
    ratio = summary["latency_ratio"]
    lines = [
        *columns(rows),
        "",
        f"latency: {ratio['median']:.3f}x of dense, measured in pairs ({ratio['low']:.3f}–{ratio['high']:.3f})",
        f"{summary['agent']}: {summary['evaluations']} evaluations; {summary['seconds']['total']:.0f} s in all",
        *_table_lines(summary),
        *goal_lines(summary.get("goal") or {}),
        *(f"WARNING: {text}" for text in summary["warnings"]),
        f"model: {folder / 'pruned.onnx'}",
        f"report: {folder / 'report.html'}",
    ]
    return "\n".join(lines)


def _predicted(block: Mapping[str, Any]) -> str:
    value, sigma = block["latency_ms_predicted"], block.get("latency_ms_predicted_sigma")
    return _number(value) if value is None or sigma is None else f"{value:.3f} ± {sigma:.3f}"


def _table_lines(summary: Mapping[str, Any]) -> list[str]:
    """How good the latency table is on networks it had not seen, and what it took from the search."""
    table = summary.get("table")
    if not table:
        return []
    found = table.get("accuracy")
    errors = "not checked on this network"
    if found:
        errors = (
            f"mean error {found['mape']:.2%}, {found['within_5']:.0%} within 5 %, {found['within_10']:.0%} within 10 % "
            "on networks it had not seen"
        )
        if found.get("noise_mape") is not None:
            errors += f"; measuring twice differs by {found['noise_mape']:.2%}"
    return [f"latency table {table['name']}: {errors}" + _left_out(summary.get("widths_left_out", 0))]


def _left_out(count: int) -> str:
    return f"; {count} widths left out, no faster than wider ones" if count else ""


def sparsify_text(summary: Mapping[str, Any], folder: Path) -> str:
    """What training-time pruning left, before and after fine-tuning, and where the files are."""
    rows = [["", "accuracy", "loss", "parameters not 0", "MACs", "predicted ms"]]
    for name in ("dense", "sparse", "finetuned"):
        block = summary[name]
        rows.append(
            [
                name,
                f"{100 * block['accuracy']:.2f} %",
                f"{block['loss']:.4f}",
                _count(block["nonzero_params"]),
                _count(block.get("macs")),
                _number(block.get("latency_ms")),
            ]
        )
    target = summary["target"]
    what = "weights" if summary["granularity"] == "weights" else "channels and heads"
    achieved = f": {target['achieved']:,.6g} {target['cost']} of {target['dense']:,.6g}" if "cost" in target else ""
    lines = [
        *columns(rows),
        "",
        f"{summary['method']}: {summary['kept']:,} of {summary['total']:,} {what} are left; "
        f"the target's share is {target['kept']:.4f}, {target['kept_asked']:.4f} was asked for{achieved}",
        *(f"WARNING: {text}" for text in summary["warnings"]),
        f"densities: {folder / 'densities.csv'}",
        f"policy to start a search from: {folder / 'policy.json'}",
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
        f"channel multiple {plan['channel_multiple']}, {float(plan['policies']):.3g} policies"
        + _left_out(plan["widths_left_out"]),
        *columns(rows),
        f"{plan['agent']}: {plan['trials']} evaluations" + (f", then {plan['baseline']}" if plan["baseline"] else ""),
        *(f"WARNING: {text}" for text in plan["warnings"]),
        f"expected time: about {seconds['total'] / 60:.1f} minutes ({parts})",
    ]
    return "\n".join(lines)


def energy_text(report: Mapping[str, Any]) -> str:
    """Energy of every layer by what it is spent on, dense beside pruned and sparse, and which layer costs most."""
    networks = report["networks"]
    others = {
        name: {layer["name"]: layer for layer in networks[name]["layers"]} for name in networks if name != "dense"
    }
    parts = list(networks["dense"]["parts_mj"])
    beside = {"pruned": "pruned to", "sparse": f"density, {report['storage']}"}
    rows = [["layer", "channels", "mJ", *parts, *(cell for name in others for cell in (beside[name], "mJ"))]]
    for layer in networks["dense"]["layers"]:
        row = [layer["name"], _channels(layer), _number(layer["energy_mj"])]
        row += [_number(layer["parts_mj"][part]) for part in parts]
        for name, layers in others.items():
            after = layers[layer["name"]]
            density = report["densities"].get(layer["name"])
            row += [_channels(after) if name == "pruned" else _number(density), _number(after["energy_mj"])]
        rows.append(row)
    for name, found in networks.items():
        rows.append([f"{name}, all", "", _number(found["energy_mj"]), *map(_number, found["parts_mj"].values())])
    width = max(map(len, rows))
    lines = [
        f"{report['device']}, batch {report['batch']}",
        *columns([row + [""] * (width - len(row)) for row in rows]),
    ]
    for name, found in networks.items():
        surplus = found["dram_bytes"] / max(found["dram_least_bytes"], 1.0)
        lines += [
            f"{name}: {found['costliest']}",
            f"{name}: {found['dram_bytes']:,.0f} bytes from and to DRAM, {surplus:.2f} times the lower bound",
        ]
    if report["without_static"]:
        lines.append("static power is left out: it needs device.table, a latency table of this device")
    if "measured" in report:
        measured = report["measured"]
        calls = ", ".join(f"{name} {value:.4g} mJ" for name, value in measured["call_mj"].items())
        lines.append(f"measured above idling by {measured['counter']}: {calls}; {measured['scale']:.3g} x predicted")
    return "\n".join([*lines, *(f"{name}: {path}" for name, path in report["files"].items())])


def _channels(layer: Mapping[str, Any]) -> str:
    return f"{layer['in_channels']}→{layer['out_channels']}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
