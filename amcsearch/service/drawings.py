"""Drawings of the page as numbers and paths that its templates put into SVG: the best so far, fronts, and cliffs."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from amcsearch.core import counted
from amcsearch.reporting import LayerCurve, axis, cost_text
from amcsearch.service.records import BestSoFar, JobProgress
from amcsearch.service.trial_points import AgentPoints

__all__ = ["Curve", "FrontDrawing", "LayerDrawing", "Scale", "Tick", "best_so_far", "front_drawing", "layer_drawing"]

_WIDTH, _LEFT = 640, 64
_HEIGHT, _BOTTOM = 220, 32  # of the curve
_FRONT_HEIGHT, _FRONT_BASE, _FRONT_TOP = 320, 276, 14
_RIGHT: Final = 628
_LAYER_WIDTH, _LAYER_HEIGHT, _LAYER_LEFT, _LAYER_TOP, _LAYER_BASE = 320, 180, 58, 10, 152
_MARGIN: Final = 0.04  # of a range, on both sides
_TICKS: Final = 5


@dataclass(frozen=True)
class Curve:
    """The best metric so far against evaluations; ``path`` is SVG's, ``description`` says it in words."""

    width: int
    height: int
    left: int
    base: int
    path: str
    high: str
    low: str
    last: int
    description: str


def best_so_far(progress: JobProgress) -> Curve | None:
    """Return the best metric so far against evaluations, None before there is one."""
    points = [(x, y) for x, y in progress.improvements if math.isfinite(y)]
    if progress.best is None or not points:
        return None
    metric, last = progress.best.judged_by.metric, max(progress.total, progress.evaluations, 1)
    steps = [*points, (float(progress.evaluations), points[-1][1])]
    low, high = min(y for _, y in steps), max(y for _, y in steps)
    base, evaluations = _HEIGHT - _BOTTOM, counted(progress.evaluations, "evaluation")
    across = Scale(0.0, float(last), _LEFT, _WIDTH - 12)
    up = Scale(low, high, base, 24) if high > low else Scale(low, low + 1.0, base, 24)
    return Curve(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        base=base,
        path=_steps([(across(x), up(y)) for x, y in steps]),
        high=metric.text(high),
        low="" if low == high else metric.text(low),
        last=last,
        description=f"Best {metric.name} so far: {metric.text(points[-1][1])} after {evaluations}",
    )


def _steps(points: Sequence[tuple[float, float]]) -> str:
    """A path that keeps its height until the next point."""
    path = f"M {points[0][0]:.1f} {points[0][1]:.1f}"
    for (_, before), (x, y) in pairwise(points):
        path += f" L {x:.1f} {before:.1f} L {x:.1f} {y:.1f}"
    return path


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where it is, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """A range of values on a range of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value is."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float) -> "Scale":
        """Return the scale that holds all values, with a margin."""
        kept = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(kept), max(kept)
        margin = _MARGIN * (high - low) or abs(low) * _MARGIN or 1.0
        return cls(low - margin, high + margin, start, end)

    def ticks(self, text: Callable[[float], str]) -> tuple[Tick, ...]:
        """Return marks at round values, 1, 2 or 5 times a power of ten apart; none says the same as another."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        marks = {text(number * step): self(number * step) for number in range(last, first - 1, -1)}
        return tuple(Tick(round(at, 1), label) for label, at in reversed(marks.items()))


@dataclass(frozen=True)
class FrontDrawing:
    """All trials of an agent as points of the metric against a cost, with their front.

    ``feasible`` and ``over`` are paths of dots and dashes, ``front`` a path in steps, ``knees`` its points. ``best`` is
    where the best trial is, ``limit`` the budget's end, None where they are not known. ``rows`` are the front in words.
    """

    agent: str
    width: int
    height: int
    left: int
    right: int
    top: int
    base: int
    feasible: str
    over: str
    front: str
    knees: tuple[tuple[float, float], ...]
    best: tuple[float, float] | None
    limit: float | None
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]
    x_label: str
    y_label: str
    rows: tuple[tuple[str, str], ...]
    description: str


def front_drawing(points: AgentPoints, best: BestSoFar | None) -> FrontDrawing:
    """Draw the trials of an agent; ``best`` is marked where it is one of them."""
    metric, name = points.judged_by.metric, points.cost
    everything = [*points.feasible, *points.over, *points.front]
    limits = () if points.limit is None else (points.limit,)
    across = Scale.around([*(x for x, _ in everything), *limits], _LEFT, _RIGHT)
    up = Scale.around((y for _, y in everything), _FRONT_BASE, _FRONT_TOP)
    front = [(across(x), up(y)) for x, y in points.front]
    label, _ = axis(name)
    is_mine = best is not None and (best.costs.get(name), best.metric) in {(x, y) for x, y in points.front}
    marked = (round(across(best.costs[name]), 1), round(up(best.metric), 1)) if best is not None and is_mine else None
    rows = tuple((cost_text(name, x), metric.text(y)) for x, y in points.front)
    return FrontDrawing(
        agent=points.agent,
        width=_WIDTH,
        height=_FRONT_HEIGHT,
        left=_LEFT,
        right=_RIGHT,
        top=_FRONT_TOP,
        base=_FRONT_BASE,
        feasible="".join(f"M{across(x):.1f} {up(y):.1f}h0" for x, y in points.feasible),
        over="".join(f"M{across(x) - 2:.1f} {up(y):.1f}h4" for x, y in points.over),
        front=_steps(front) if front else "",
        knees=tuple((round(x, 1), round(y, 1)) for x, y in front),
        best=marked,
        limit=None if points.limit is None else round(across(points.limit), 1),
        xs=across.ticks(lambda value: cost_text(name, value)),
        ys=up.ticks(lambda value: metric.text(value, 1)),
        x_label=label.partition(" (")[0],
        y_label=metric.label,
        rows=rows,
        description=_description(points, rows),
    )


def _description(points: AgentPoints, rows: Sequence[tuple[str, str]]) -> str:
    name, against = points.judged_by.metric.word, axis(points.cost)[0].partition(" (")[0]
    text = f"{counted(points.count, 'trial')} of {points.agent}, {name} against {against}"
    if not rows:
        return f"{text}; none within the budget yet"
    (cheapest, least), (dearest, most) = rows[0], rows[-1]
    return f"{text}; the front goes from {least} at {cheapest} to {most} at {dearest}"


@dataclass(frozen=True)
class LayerDrawing:
    """Predicted latency of a layer over its output channels.

    ``curve`` is a path through the widths of the channel grid, ``others`` dots of all, ``measured`` ticks of those
    that were measured, ``cliffs`` dots of those that are slower than some wider one. ``rows`` are the cliffs on the
    grid, or all where none is on it: the width, its latency, the fastest wider width, its latency, and by how much the
    cliff is slower.
    """

    title: str
    width: int
    height: int
    left: int
    top: int
    base: int
    curve: str
    others: str
    measured: str
    cliffs: str
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]
    count: int
    rows: tuple[tuple[str, ...], ...]
    description: str


def layer_drawing(curve: LayerCurve, multiple: int) -> LayerDrawing:
    """Draw a layer; ``multiple`` of channels is the grid that a search uses."""
    most, highest = int(curve.widths[-1]), float(curve.ms.max())
    across = Scale(0.0, float(most), _LAYER_LEFT, _LAYER_WIDTH - 10)
    up = Scale(0.0, 1.05 * highest, _LAYER_BASE, _LAYER_TOP)
    spots = [(across(float(x)), up(float(y))) for x, y in zip(curve.widths, curve.ms, strict=True)]
    cliffs = curve.cliffs.tolist()
    on_grid = [at for at in cliffs if curve.widths[at] % multiple == 0]
    line = [at for at in range(len(spots)) if curve.widths[at] % multiple == 0 or at == len(spots) - 1]
    description = f"{curve.title}: {highest:.3g} ms at the most, {len(cliffs)} of {len(curve.widths)} widths are cliffs"
    return LayerDrawing(
        title=curve.title,
        width=_LAYER_WIDTH,
        height=_LAYER_HEIGHT,
        left=_LAYER_LEFT,
        top=_LAYER_TOP,
        base=_LAYER_BASE,
        curve="M" + "L".join(f"{spots[at][0]:.1f} {spots[at][1]:.1f}" for at in line),
        others="".join(f"M{x:.1f} {y:.1f}h0" for x, y in spots),
        measured="".join(f"M{spots[at][0]:.1f} {_LAYER_BASE}v5" for at in curve.measured.tolist()),
        cliffs="".join(f"M{spots[at][0]:.1f} {spots[at][1]:.1f}h0" for at in cliffs),
        xs=across.ticks(lambda value: f"{value:g}")[1:],
        ys=up.ticks(lambda value: f"{value:.3g}"),
        count=len(cliffs),
        rows=tuple(_cliff(curve, at) for at in on_grid or cliffs),
        description=description,
    )


def _cliff(curve: LayerCurve, at: int) -> tuple[str, ...]:
    wider = at + 1 + int(curve.ms[at + 1 :].argmin())
    here, there = float(curve.ms[at]), float(curve.ms[wider])
    return str(curve.widths[at]), f"{here:.4g}", str(curve.widths[wider]), f"{there:.4g}", f"{here / there - 1:.0%}"
