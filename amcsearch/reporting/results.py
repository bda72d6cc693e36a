"""The first part of the page: what the user got, in a headline and a table."""

from collections.abc import Sequence
from typing import Final

from amcsearch.core import COST_NAMES, Cost, read_limit
from amcsearch.reporting.record import Record
from amcsearch.reporting.words import (
    LABELS,
    cost,
    deviation,
    escape,
    interval,
    known,
    milliseconds,
    percent,
    points,
    size,
)
from amcsearch.runs import BudgetEntry, DeliveredAccuracy, Interval, ModelBlock, SparsifySummary, Summary

__all__ = ["budget", "finalists", "results", "table"]

_COLUMNS: Final = {"macs": "MACs", "params": "Parameters", "energy_mj": "Energy, predicted"}


def results(record: Record) -> str:
    """What the user got, or nothing where the run has not finished."""
    if record.sparse is not None:
        return _sparse_networks(record.sparse)
    if record.summary is None:
        return ""
    return _headline(record.summary, record.onnx_bytes) + _before_and_after(record.summary)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """Return a table of cells that are HTML already; the first of each row is its heading."""
    lines = ["<div class='scroll'><table><thead><tr>", *(f"<th>{cell}</th>" for cell in head), "</tr></thead><tbody>"]
    for i, (first, *cells) in enumerate(rows):
        mark = " class='chosen'" if i == chosen else ""
        lines.append(f"<tr{mark}><th>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def _headline(summary: Summary, onnx_bytes: int | None) -> str:
    """One card a figure: how much faster, how accurate, how small."""
    dense, tuned = summary.dense, summary.finetuned
    delivered = tuned.delivered is not None
    before, after = (_delivered(block) for block in (dense, tuned))
    cards = [
        _speed_card(summary),
        _card(
            "Accuracy",
            percent(after, 2),
            f"dense {percent(before, 2)}",
            f"{points(before, after)}, test split" + (", as delivered" if delivered else ""),
        ),
        _size_card(dense.cost, tuned.cost, onnx_bytes),
        *(_cost_card(name, dense.cost, tuned.cost) for name in ("macs", "energy_mj") if name in tuned.cost),
    ]
    return "<section class='bare cards'>" + "".join(cards) + "</section>"


def _delivered(block: ModelBlock) -> float:
    """Accuracy of the model that is delivered: apart where it computes in another data type."""
    return block.accuracy if block.delivered is None else block.delivered.accuracy


def _card(what: str, value: str, *lines: str) -> str:
    small = "".join(f"<span>{escape(line)}</span>" for line in lines if line)
    return f"<div class='card'><span class='what'>{escape(what)}</span><b>{escape(value)}</b>{small}</div>"


def _speed_card(summary: Summary) -> str:
    before, after = summary.dense.latency_ms, summary.finetuned.latency_ms
    middle = known(summary.latency_ratio.median)
    ends = f"{milliseconds(before.median)} → {milliseconds(after.median)}"
    share = f"{middle:.3f}x of dense, 95 % interval {interval(summary.latency_ratio)}" if middle else ""
    return _card("Measured latency", _speed(middle) if middle else milliseconds(after.median), ends, share)


def _size_card(dense: Cost, tuned: Cost, onnx_bytes: int | None) -> str:
    ends = f"{cost('params', dense.params)} → {cost('params', tuned.params)}"
    file = f"ONNX file {size(onnx_bytes)}" if onnx_bytes else ""
    return _card("Parameters", _left(dense.params, tuned.params), ends, file)


def _cost_card(name: str, dense: Cost, tuned: Cost) -> str:
    ends = f"{cost(name, dense.get(name))} → {cost(name, tuned.get(name))}"
    predicted = "predicted" if name == "energy_mj" else ""
    return _card(LABELS[name], _left(dense.get(name), tuned.get(name)), ends, predicted)


def _left(before: float | None, after: float | None) -> str:
    if not before or after is None:
        return "–"
    return f"{100 * (after / before - 1):+.0f}\u00a0%".replace("-", "−")


def _speed(share: float) -> str:
    """Latency as a share of dense, in words."""
    return f"{1 / share:.2f}x faster" if share <= 1.0 else f"{share:.2f}x slower"


def _before_and_after(summary: Summary) -> str:
    """Dense, pruned and fine-tuned, side by side."""
    blocks = {"Dense": summary.dense, "Pruned": summary.pruned, "Fine-tuned": summary.finetuned}
    delivered = summary.finetuned.delivered
    accuracies = ["Accuracy", *([] if delivered is None else [f"Accuracy, {delivered.dtype}"])]
    names = _priced([block.cost for block in blocks.values()])
    head = ["", *map(escape, accuracies), *map(_column, names), "Latency, predicted", "Latency, measured"]
    rows = [
        [
            title,
            *_accuracies(summary.dense, block, delivered),
            *(_with(cost(name, block.cost.get(name)), _share(summary.dense, block, name)) for name in names),
            _with(milliseconds(block.cost.latency_ms), deviation(block.latency_ms_sigma)),
            _measured(block.latency_ms),
        ]
        for title, block in blocks.items()
    ]
    return (
        f"<section id='before-after'><h2>Before and after</h2>{table(head, rows)}"
        f"<p class='note'>{_note(summary)}</p>{budget(summary)}</section>"
    )


def _priced(costs: Sequence[Cost]) -> list[str]:
    """Names of the costs that any network has, without latency, which is also measured."""
    names = dict.fromkeys(name for priced in costs for name in priced)
    return [name for name in (*_COLUMNS, *(name for name in names if name not in COST_NAMES)) if name in names]


def _column(name: str) -> str:
    return escape(_COLUMNS.get(name, name))


def _accuracies(dense: ModelBlock, block: ModelBlock, delivered: DeliveredAccuracy | None) -> list[str]:
    """Accuracy in torch and, where the delivered file has another one, that, each with its change."""
    pairs = [(dense.accuracy, known(block.accuracy))]
    if delivered is not None:
        pairs.append((_delivered(dense), None if block.delivered is None else known(block.delivered.accuracy)))
    return [
        _with(percent(after, 2), "" if block is dense or after is None else points(before, after))
        for before, after in pairs
    ]


def _measured(measured: Interval) -> str:
    return _with(milliseconds(measured.median), interval(measured, "\u00a0ms"))


def _note(summary: Summary) -> str:
    note = (
        "Accuracy is on the test split, read once. Measured latency is the median of runs interleaved with the dense "
        "network, with its 95 % bootstrap interval; removing channels and fine-tuning give the same shapes, so one "
        "measurement serves both."
    )
    if any(block.latency_ms_sigma is not None for block in (summary.dense, summary.pruned, summary.finetuned)):
        note += " Predicted latency is given with its standard deviation."
    if summary.finetuned.delivered is not None:
        note += (
            f" The ONNX file and the latencies are of {escape(summary.dtype)}; accuracy without this suffix "
            "is that of the network in float32, before it was quantised."
        )
    return note


def budget(summary: Summary) -> str:
    """Whether each limit holds, by prediction and (for latency) by measurement."""
    lines = []
    for name, entry in summary.budget.items():
        asked = f" ({escape(entry.asked)} of dense)" if _share_asked(entry) is not None else ""
        predicted = cost(name, summary.finetuned.cost.get(name))
        text = f"{LABELS.get(name, escape(name))} at most {cost(name, entry.limit)}{asked}: predicted {predicted}"
        lines.append(f"<p>Budget: {text}{_measured_verdict(summary, name, entry)}</p>")
    return "".join(lines)


def _measured_verdict(summary: Summary, name: str, entry: BudgetEntry) -> str:
    measured, ratio = known(summary.finetuned.latency_ms.median), known(summary.latency_ratio.median)
    if name != "latency_ms" or measured is None:
        return "."
    value, bound, text = measured, entry.limit, f"measured {milliseconds(measured)}"
    share = _share_asked(entry)
    if share is not None and ratio is not None:
        value, bound, text = ratio, share, f"measured {ratio:.3f}x of dense"
    verdict = "<span class='good'>met</span>" if value <= bound else "<span class='bad'>missed</span>"
    return f", {text}: {verdict}."


def _share_asked(entry: BudgetEntry) -> float | None:
    """The limit as a share of dense, where it was asked for as one."""
    try:
        share, of_dense = read_limit(entry.asked)
    except ValueError:
        return None
    return share if of_dense else None


def _with(text: str, small: str) -> str:
    return f"{escape(text)}<small>{escape(small)}</small>" if small else escape(text)


def _share(dense: ModelBlock, block: ModelBlock, name: str) -> str:
    return "" if block == dense else _left(dense.cost.get(name), block.cost.get(name))


def _sparse_networks(summary: SparsifySummary) -> str:
    """Dense, sparse and fine-tuned of pruning while training, side by side."""
    blocks = {"Dense": summary.dense, "Sparse": summary.sparse, "Fine-tuned": summary.finetuned}
    dense, names = summary.dense, _priced([block.cost for block in blocks.values()])
    head = ["", "Accuracy", "Parameters not 0", *map(_column, names)]
    rows = [
        [
            title,
            _with(percent(block.accuracy, 2), "" if block is dense else points(dense.accuracy, block.accuracy)),
            _with(
                cost("params", block.nonzero_params),
                "" if block is dense else _left(dense.nonzero_params, block.nonzero_params),
            ),
            *(cost(name, block.cost.get(name)) for name in names),
        ]
        for title, block in blocks.items()
    ]
    note = (
        f"Accuracy is on the test split. {summary.kept:,} of {summary.total:,} {escape(summary.granularity)} are left."
    )
    return (
        f"<section id='before-after'><h2>Before and after</h2>{table(head, rows)}<p class='note'>{note}</p></section>"
    )


def finalists(record: Record) -> str:
    """The measured policies, prediction beside measurement; nothing where none was measured."""
    entries = [] if record.summary is None else record.summary.finalists
    rows, mark = [], None
    for i, entry in enumerate(entries):
        predicted, measured = known(entry.latency_ms_predicted), known(entry.latency_ms_measured.median)
        error = f"{100 * (predicted / measured - 1):+.1f}\u00a0%".replace("-", "−") if predicted and measured else "–"
        mark = i if entry.chosen else mark
        name = f"Trial {entry.trial}" + (", chosen" if entry.chosen else "")
        latency = _measured(entry.latency_ms_measured)
        rows.append([name, percent(entry.accuracy, 2), milliseconds(predicted), latency, escape(error)])
    if not rows:
        return ""
    head = ["Policy", "Accuracy, search split", "Latency, predicted", "Latency, measured", "Prediction error"]
    note = "Measured before fine-tuning, which changes no shape; the best one within the budget as measured was chosen."
    return f"<section id='finalists'><h2>Finalists</h2>{table(head, rows, mark)}<p class='note'>{note}</p></section>"
