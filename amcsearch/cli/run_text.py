"""The results of runs as text for a terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.cli.text import columns, count, left_out, number, table_said, with_sigma
from amcsearch.core import alike, counted, digits

if TYPE_CHECKING:
    from amcsearch.runs import Interval, ModelBlock, SparsifySummary, Summary, Verdict

__all__ = ["run_text", "sparsify_text", "summary_text"]

LEAST_DRIFT: Final = 0.02  # of the dense network: a table errs by as much
_BYTES: Final = {"model_bytes": "model KiB", "peak_memory_bytes": "peak KiB"}


def run_text(summary: "Summary | SparsifySummary", folder: Path) -> str:
    """What the user got of a run of either kind."""
    from amcsearch.runs import SparsifySummary

    return sparsify_text(summary, folder) if isinstance(summary, SparsifySummary) else summary_text(summary, folder)


def summary_text(summary: "Summary", folder: Path) -> str:
    """What the user got: dense, pruned and fine-tuned side by side, and where the files are."""
    from amcsearch.reporting import goal_lines

    metric = summary.metric
    lines = [
        *columns(_networks(summary)),
        "",
        *_latency_lines(summary, folder),
        *_drift_lines(summary),
        *_how_lines(summary),
        *_table_lines(summary),
        *goal_lines(summary.goal, metric),
        *_verdict_lines(summary.judged),
        *(f"WARNING: {text}" for text in summary.warnings),
        f"model: {folder / 'pruned.onnx'}",
        f"report: {folder / 'report.html'}",
    ]
    return "\n".join(lines)


def _networks(summary: "Summary") -> list[list[str]]:
    """A head, and a row for each network; the dense one in float32 too where the file is of another data type."""
    delivered = summary.finetuned.delivered
    metric = summary.metric
    judged = [metric.word] if delivered is None else [f"{metric.word} {delivered.dtype}", "in torch, float32"]
    further = list(summary.finetuned.cost.further)
    costs = ["MACs", "parameters", "predicted ms", "measured ms (95 % interval)", "energy mJ"]
    costs += [_BYTES.get(name, name) for name in further]
    rows = [["", *judged, *costs]]
    for name, block in (("dense", summary.dense), ("pruned", summary.pruned), ("finetuned", summary.finetuned)):
        in_file, in_torch = metric.text(block.in_file), metric.text(block.in_torch)
        rows.append(
            [
                name,
                *([in_file] if delivered is None else ["" if block.delivered is None else in_file, in_torch]),
                count(block.cost.macs),
                count(block.cost.params),
                _predicted(block),
                _milliseconds(block.latency_ms, summary.latency_doubt),
                number(block.cost.energy_mj),
                *(_further(cost, block.cost.get(cost)) for cost in further),
            ]
        )
    if summary.float32_ms is not None:
        rows.insert(1, _in_float32(summary, summary.float32_ms, len(rows[0])))
    return rows


def _in_float32(summary: "Summary", latency: "Interval", columns: int) -> list[str]:
    """The row of the dense network in float32, where the file is of another data type."""
    dense = summary.dense
    shown = [count(dense.cost.macs), count(dense.cost.params), "", _milliseconds(latency, summary.latency_doubt)]
    row = ["dense, float32", "", summary.metric.text(dense.in_torch), *shown]
    return [*row, *[""] * (columns - len(row))]


def _latency_lines(summary: "Summary | SparsifySummary", folder: Path) -> list[str]:
    """Latency as a share of dense with the device that measured it; or as predicted, with the commands to go on."""
    from amcsearch.runs import verify_commands

    ratio, device, share = summary.latency_ratio, summary.device, summary.predicted_ratio
    if ratio is not None:
        where = "a device that the run does not name" if device is None else device.label
        if summary.latency_doubt is not None:
            measured = f"the {ratio.median:.2f}x of dense that were measured on {where} are unreliable"
            predicted = "" if share is None else f"; predicted {share:.3f}x"
            return [f"latency: undecided, {summary.latency_doubt.partition(':')[0]}: {measured}{predicted}"]
        return [
            f"latency: {ratio.median:.3f}x of dense, measured in pairs ({ratio.low:.3f}–{ratio.high:.3f}) on {where}"
        ]
    state = "not measured yet" if device is None else device.awaited(share)
    kit, take = verify_commands(folder)
    return [
        "latency: " + ("" if share is None else f"{share:.3f}x of dense, ") + state,
        f"go on: {kit}",
        f"       then, with what `python3 verify.pyz -o result.jsonl` wrote there: {take}",
    ]


def _drift_lines(summary: "Summary") -> list[str]:
    """What was predicted at the speed that the device had at the end, where that is another than its table's."""
    drift, share = summary.drift, summary.predicted_ratio
    if drift is None or share is None or summary.dense.latency_ms is None or abs(drift) < LEAST_DRIFT:
        return []
    ms = digits(share * summary.dense.latency_ms.median)
    slower = f"{abs(drift):.1%} {'slower' if drift > 0 else 'faster'} than its latency table says"
    return [f"         the device was {slower}, by the dense network: at that speed {ms} ms was predicted"]


def _milliseconds(latency: "Interval | None", doubt: str | None) -> str:
    if latency is None:
        return "not yet"
    if doubt is not None:
        return f"{digits(latency.median)} (undecided)"
    middle, low, high = alike(latency.median, (latency.high - latency.low) / 2, latency.low, latency.high)
    return f"{middle} ({low}–{high})"


def _how_lines(summary: "Summary") -> list[str]:
    """What chose channels, which epoch is kept, and who searched for how long."""
    how = {"selection": summary.selection, "fine-tuning": summary.training}
    return [
        *(f"{name}: {text}" for name, text in how.items() if text),
        f"{summary.agent}: {counted(summary.evaluations, 'evaluation')}; {summary.total_seconds:.0f} s in all",
    ]


def _verdict_lines(verdict: "Verdict") -> list[str]:
    """The verdict and that on each limit; the sentences on what is not met are among the warnings."""
    if not verdict.limits and not verdict.problems:
        return []
    limits = ", ".join(f"{limit.asked_text} {limit.state}" for limit in verdict.limits)
    return [f"verdict: {verdict.state}" + (f" ({limits})" if limits else "")]


def _predicted(block: "ModelBlock") -> str:
    value, sigma = block.cost.latency_ms, block.latency_ms_sigma
    return number(value) if value is None or sigma is None else with_sigma(value, sigma)


def _table_lines(summary: "Summary") -> list[str]:
    """How good the latency table is on networks it had not seen, and what it took from the search."""
    if summary.table is None:
        return []
    lines = [table_said(summary.table) + left_out(summary.widths_left_out)]
    return lines if summary.table.origin is None else [*lines, f"latency table {summary.table.origin.sentence}"]


def sparsify_text(summary: "SparsifySummary", folder: Path) -> str:
    """What training-time pruning left, before and after fine-tuning, and where the files are."""
    rows = [["", summary.metric.word, "loss", "parameters not 0", "MACs", "predicted ms"]]
    for name, block in (("dense", summary.dense), ("sparse", summary.sparse), ("finetuned", summary.finetuned)):
        rows.append(
            [
                name,
                summary.metric.text(block.metric),
                f"{block.loss:.4f}",
                count(block.nonzero_params),
                count(block.cost.macs),
                number(block.cost.latency_ms),
            ]
        )
    target = summary.target
    units = "weights" if summary.granularity == "weights" else "channels and heads"
    achieved = "" if target.achieved is None else f": {target.achieved:,.6g} {target.name} of {target.dense:,.6g}"
    lines = [
        *columns(rows),
        "",
        f"{summary.method}: {summary.kept:,} of {summary.total:,} {units} are left; "
        f"the target's share is {target.kept:.4f}, {target.kept_asked:.4f} was asked for{achieved}",
        *([f"fine-tuning: {summary.training}"] if summary.training else []),
        *([] if summary.device is None else _latency_lines(summary, folder)),
        *_verdict_lines(summary.judged),
        *(f"WARNING: {text}" for text in summary.warnings),
        f"densities: {folder / 'densities.csv'}",
        f"policy to start a search from: {folder / 'policy.json'}",
        f"report: {folder / 'report.html'}",
    ]
    return "\n".join(lines)


def _further(name: str, value: float | None) -> str:
    return number(value / 1024 if name in _BYTES and value is not None else value)
