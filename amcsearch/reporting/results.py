"""The first part of the page: what the user got, in a headline and a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from amcsearch.core import FIRST_COSTS, Cost
from amcsearch.reporting.goals import choice, judgement_of
from amcsearch.reporting.record import Record
from amcsearch.reporting.words import (
    LABELS,
    change,
    cost,
    deviation,
    escape,
    interval,
    known,
    marked,
    measured,
    milliseconds,
    preformatted,
    size,
    table,
    with_small,
)
from amcsearch.runs import (
    Interval,
    LimitVerdict,
    ModelBlock,
    SparseBlock,
    SparsifySummary,
    Summary,
    VerdictState,
    verify_commands,
)

__all__ = ["budget", "finalists", "results"]

_COLUMNS: Final = {"macs": "MACs", "params": "Parameters", "energy_mj": "Energy, predicted"}


def results(record: Record) -> str:
    """What the user got, or nothing where the run has not finished."""
    if record.result is None:
        return ""
    if isinstance(record.result, SparsifySummary):
        return _sparse_networks(record.result, record.name)
    return _headline(record.result, record.onnx_bytes) + _before_and_after(record.result, record.name)


def _headline(summary: Summary, onnx_bytes: int | None) -> str:
    """One card a figure: how much faster, how accurate, how small."""
    dense, tuned, metric = summary.dense, summary.finetuned, summary.metric
    is_scored = tuned.delivered is not None or tuned.torch_metric is not None
    before, after = dense.in_file, tuned.in_file
    cards = [
        _speed_card(summary),
        _card(
            metric.label,
            measured(metric, after),
            f"dense {measured(metric, before)}",
            f"{change(metric, before, after)}, test split" + (", as delivered" if is_scored else ""),
        ),
        _size_card(dense.cost, tuned.cost, onnx_bytes),
        *(_cost_card(name, dense.cost, tuned.cost) for name in ("macs", "energy_mj") if name in tuned.cost),
    ]
    return "<section class='bare cards'>" + "".join(cards) + "</section>"


def _card(label: str, value: str, *lines: str) -> str:
    small = "".join(f"<span>{escape(line)}</span>" for line in lines if line)
    return f"<div class='card'><span class='what'>{escape(label)}</span><b>{escape(value)}</b>{small}</div>"


def _speed_card(summary: Summary) -> str:
    before, after, ratio = summary.dense.latency_ms, summary.finetuned.latency_ms, summary.latency_ratio
    if before is None or after is None or ratio is None:
        return _awaited_card(summary)
    middle = known(ratio.median)
    ends = f"{milliseconds(before.median)} → {milliseconds(after.median)}"
    share = f"{middle:.3f}x of dense, 95 % interval {interval(ratio)}" if middle else ""
    where = _where(summary)
    if summary.latency_doubt is not None:
        predicted = summary.predicted_ratio
        prediction = "" if predicted is None else f"predicted {predicted:.3f}x of dense"
        measured = f"{middle:.3f}x of dense" if middle else ""
        return _card("Measured latency", "undecided", _why(summary.latency_doubt), measured, prediction, where)
    return _card("Measured latency", _speed(middle) if middle else milliseconds(after.median), ends, share, where)


def _why(doubt: str) -> str:
    """The cause of a doubt without its numbers: the host was too busy, or too few rounds."""
    return doubt.partition(":")[0]


def _awaited_card(summary: Summary) -> str:
    """Latency that its device has not measured yet."""
    share, device = summary.predicted_ratio, summary.device
    ends = f"{milliseconds(summary.dense.cost.latency_ms)} → {milliseconds(summary.finetuned.cost.latency_ms)}"
    state = "not measured yet" if device is None else device.awaited(share)
    return _card("Latency", *(("not known",) if share is None else (_speed(share), ends)), state)


def _where(summary: Summary | SparsifySummary) -> str:
    """The device that measured, in words."""
    return "on a device that the run does not name" if summary.device is None else f"on {summary.device.label}"


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


def _before_and_after(summary: Summary, run: str) -> str:
    """Dense, pruned and fine-tuned, side by side."""
    blocks = {"Dense": summary.dense, "Pruned": summary.pruned, "Fine-tuned": summary.finetuned}
    delivered = summary.finetuned.delivered
    label = summary.metric.label
    judged = [label] if delivered is None else [f"{label}, {delivered.dtype}", "In torch, float32"]
    names = _priced([block.cost for block in blocks.values()])
    head = ["", *map(escape, judged), *map(_column, names), "Latency, predicted", "Latency, measured"]
    rows = [
        [
            title,
            *_metrics(summary, block),
            *(with_small(cost(name, block.cost.get(name)), _share(summary.dense, block, name)) for name in names),
            with_small(milliseconds(block.cost.latency_ms), deviation(block.latency_ms_sigma)),
            _measured(block.latency_ms, summary.latency_doubt),
        ]
        for title, block in blocks.items()
    ]
    if summary.float32_ms is not None:
        rows.insert(0, _in_float32(summary, len(judged), names, summary.float32_ms))
    return (
        f"<section id='before-after'><h2>Before and after</h2>{table(head, rows)}"
        f"<p class='note'>{_note(summary)}</p>{_next_commands(summary, run)}{budget(summary)}</section>"
    )


def _in_float32(summary: Summary, judged: int, costs: Sequence[str], latency: Interval) -> list[str]:
    """The row of the dense network in float32; costs of bytes and energy are of the data type of the file."""
    of_shapes = {name: summary.dense.cost.get(name) for name in ("macs", "params")}
    return [
        "Dense, float32",
        *["–"] * (judged - 1),
        measured(summary.metric, summary.dense.in_torch),
        *(cost(name, of_shapes[name]) if name in of_shapes else "–" for name in costs),
        "–",
        _measured(latency, summary.latency_doubt),
    ]


def _priced(costs: Sequence[Cost]) -> list[str]:
    """Names of the costs that any network has, without latency, which is also measured."""
    names = dict.fromkeys(name for priced in costs for name in priced)
    return [name for name in (*_COLUMNS, *(name for name in names if name not in FIRST_COSTS)) if name in names]


def _column(name: str) -> str:
    return escape(_COLUMNS.get(name, LABELS.get(name, name)))


def _metrics(summary: Summary, block: ModelBlock) -> list[str]:
    """Metric of the delivered file and, where it computes in another data type, that in torch, with changes."""
    dense, metric = summary.dense, summary.metric
    pairs = [(dense.in_file, known(block.in_file))]
    if summary.finetuned.delivered is not None:
        pairs = [
            (dense.in_file, None if block.delivered is None else known(block.in_file)),
            (dense.in_torch, known(block.in_torch)),
        ]
    return [
        with_small(measured(metric, after), "" if block is dense or after is None else change(metric, before, after))
        for before, after in pairs
    ]


def _next_commands(summary: Summary | SparsifySummary, run: str) -> str:
    """How to go on where an absent device has to measure; ``run`` is the name of the folder."""
    if summary.device is None or not summary.device.is_awaited:
        return ""
    kit, take = verify_commands(Path(run))
    lines = f"{kit}\n# on {summary.device.label}\npython3 verify.pyz -o result.jsonl\n# here again\n{take}"
    return f"<p>To measure it, in the folder that holds {escape(run)}:</p>{preformatted(lines)}"


def _measured(measured: Interval | None, doubt: str | None) -> str:
    if measured is None:
        return "not yet"
    return with_small(milliseconds(measured.median), interval(measured, "\u00a0ms") if doubt is None else "undecided")


def _note(summary: Summary) -> str:
    label, word = escape(summary.metric.label), escape(summary.metric.word)
    note = (
        f"{label} is on the test split, read once. {_how_measured(summary)}; removing channels and fine-tuning give "
        "the same shapes, so one measurement serves both."
    )
    if summary.device is not None and summary.device.is_awaited:
        note = (
            f"{label} is on the test split, read once. Latency is "
            f"{escape(summary.device.awaited(summary.predicted_ratio))}; removing channels and "
            "fine-tuning give the same shapes, so one measurement will serve both."
        )
    if any(block.latency_ms_sigma is not None for block in (summary.dense, summary.pruned, summary.finetuned)):
        note += " Predicted latency is given with its standard deviation."
    if summary.finetuned.delivered is not None:
        note += (
            f" The ONNX file and the latencies are of {escape(summary.dtype)}; {word} in torch is that of the "
            "network in float32, before it was quantised."
        )
        alone, both = summary.of_float32(summary.dense), summary.of_float32(summary.finetuned)
        if alone is not None and both is not None:
            note += (
                f" Of the dense network's latency in float32, {escape(summary.dtype)} alone leaves {alone:.3f}x, and "
                f"with pruning {both:.3f}x."
            )
    elif summary.finetuned.torch_metric is not None:
        in_torch = measured(summary.metric, summary.finetuned.torch_metric)
        note += (
            f" The {word} of the fine-tuned network is that of the ONNX file as delivered; in torch it is {in_torch}."
        )
    return note


def _how_measured(summary: Summary | SparsifySummary) -> str:
    return (
        "Measured latency is the median of runs interleaved with the dense network "
        f"{escape(_where(summary))}" + ", with its 95 % bootstrap interval" * (summary.latency_doubt is None)
    )


def budget(summary: Summary) -> str:
    """Whether each limit holds: the verdict, which the terminal and ``summary.json`` give too."""
    return "".join(f"<p>Budget: {_limit(summary, limit)}</p>" for limit in summary.judged.limits)


def _limit(summary: Summary, limit: LimitVerdict) -> str:
    name, entry = limit.cost, summary.budget.get(limit.cost)
    share = f"{escape(limit.asked)} of dense"
    absolute = limit.limit if not limit.of_dense else entry.limit if entry is not None else None
    bound = share if absolute is None else cost(name, absolute) + (f" ({share})" if limit.of_dense else "")
    predicted = f"{limit.predicted:.3f}x of dense" if limit.of_dense else cost(name, limit.predicted)
    if entry is not None:
        predicted = cost(name, summary.finetuned.cost.get(name))
    verdict = marked(limit.state, "good" if limit.state is VerdictState.MET else "bad")
    return f"{LABELS.get(name, escape(name))} at most {bound}: predicted {predicted}{_measurement(limit)}: {verdict}."


def _measurement(limit: LimitVerdict) -> str:
    if limit.measured is None:
        return ""
    if limit.of_dense:
        return f", measured {limit.measured.median:.3f}x of dense"
    return f", measured {milliseconds(limit.measured.median)}"


def _share(dense: ModelBlock, block: ModelBlock, name: str) -> str:
    return "" if block == dense else _left(dense.cost.get(name), block.cost.get(name))


def _sparse_networks(summary: SparsifySummary, run: str) -> str:
    """Dense, sparse and fine-tuned of pruning while training, side by side."""
    blocks = {"Dense": summary.dense, "Sparse": summary.sparse, "Fine-tuned": summary.finetuned}
    dense, names = summary.dense, _priced([block.cost for block in blocks.values()])
    metric = summary.metric
    head = ["", escape(metric.label), "Parameters not 0", *map(_column, names), *_latency_head(summary)]
    rows = [
        [
            title,
            with_small(
                measured(metric, block.metric),
                "" if block is dense else change(metric, dense.metric, block.metric),
            ),
            with_small(
                cost("params", block.nonzero_params),
                "" if block is dense else _left(dense.nonzero_params, block.nonzero_params),
            ),
            *(cost(name, block.cost.get(name)) for name in names),
            *_latencies(summary, block),
        ]
        for title, block in blocks.items()
    ]
    left = f"{summary.kept:,} of {summary.total:,} {escape(summary.granularity)} are left."
    note = f"{escape(metric.label)} is on the test split. {left}{_sparse_note(summary)}"
    return (
        f"<section id='before-after'><h2>Before and after</h2>{table(head, rows)}<p class='note'>{note}</p>"
        f"{_next_commands(summary, run)}{_target(summary)}</section>"
    )


def _latency_head(summary: SparsifySummary) -> list[str]:
    """Columns of latency, where a device is to measure it: predicted only where anything is."""
    if summary.device is None:
        return []
    return ["Latency, predicted"] * (summary.dense.cost.latency_ms is not None) + ["Latency, measured"]


def _latencies(summary: SparsifySummary, block: SparseBlock) -> list[str]:
    """Cells of ``_latency_head``: the sparse and the fine-tuned network are of one latency."""
    made, names = summary.latency, _latency_head(summary)
    latency = None if made is None else made.dense_ms if block is summary.dense else made.finetuned_ms
    cells = [milliseconds(block.cost.latency_ms), _measured(latency, summary.latency_doubt)]
    return cells[len(cells) - len(names) :]


def _sparse_note(summary: SparsifySummary) -> str:
    device, latency = summary.device, summary.latency
    if device is None:
        return ""
    if latency is None:
        return f" Latency is {escape(device.awaited(summary.predicted_ratio))}."
    share = f"{latency.ratio.median:.3f}x of dense"
    if summary.latency_doubt is not None:
        return f" {_how_measured(summary)}: {share}, and decides nothing: {_why(summary.latency_doubt)}."
    return f" {_how_measured(summary)}: {share} ({interval(latency.ratio)})."


def _target(summary: SparsifySummary) -> str:
    """Whether the target is reached."""
    return "".join(f"<p>Target: {escape(limit.text)}.</p>" for limit in summary.judged.limits)


def finalists(record: Record) -> str:
    """The measured policies, prediction beside measurement; nothing where none was measured."""
    summary = record.summary
    if summary is None or not summary.finalists:
        return ""
    entries, judgement = summary.finalists, judgement_of(summary)
    # a device that is away measures finalists and the delivered network at once
    doubt = summary.latency_doubt if summary.finetuned.latency_ms in [e.latency_ms_measured for e in entries] else None
    rows, mark = [], None
    is_trained = any(entry.metric_trained is not None for entry in entries)
    for i, entry in enumerate(entries):
        latency_ms = entry.latency_ms_measured
        predicted, median = known(entry.latency_ms_predicted), None if latency_ms is None else known(latency_ms.median)
        error = f"{100 * (predicted / median - 1):+.1f}\u00a0%".replace("-", "−") if predicted and median else "–"
        mark = i if entry.chosen else mark
        name = f"Trial {entry.trial}" + ", reserve" * (entry.round > 1) + ", chosen" * entry.chosen
        latency = _measured(latency_ms, doubt)
        trained = [] if entry.metric_trained is None else [measured(record.metric, entry.metric_trained)]
        judged = [measured(record.metric, entry.metric), *(trained or ["–"] * is_trained)]
        rows.append([name, *judged, milliseconds(predicted), latency, escape(error)])
    head = [
        "Policy",
        f"{escape(record.metric.label)}, search split",
        *[judgement[:1].upper() + judgement[1:]] * is_trained,
        "Latency, predicted",
        "Latency, measured",
        "Prediction error",
    ]
    is_awaited = any(entry.latency_ms_measured is None for entry in entries)
    where = "" if is_awaited else f" {escape(_where(summary))}"
    begin = "To be measured" if is_awaited else "Measured"
    note = f"{begin}{where} before fine-tuning, which changes no shape; {choice(summary, doubt)}."
    return f"<section id='finalists'><h2>Finalists</h2>{table(head, rows, mark)}<p class='note'>{note}</p></section>"
