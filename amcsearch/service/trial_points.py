"""All trials of a search as points of the metric against one cost, in bounded space, and the Pareto front of them.

A job's process writes them to a file beside its run folder, which the page draws. Up to ``MOST_POINTS`` points are kept
as they are. Then they are gathered in the cells of a grid, whose size doubles whenever that many cells are not enough:
10⁵ trials and more take the space, and the time to draw, of a thousand.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from amcsearch.core import BadInputError, Cost, Trial, TrialState, parse_json, read_text
from amcsearch.runs import MetricRecord, StoredDocument, read_as, replacing

__all__ = ["MOST_POINTS", "AgentPoints", "TrialPoints"]

MOST_POINTS: Final = 1000
_CELLS: Final = 64  # along each axis, when points are first gathered
_MOST_FRONT: Final = 300  # points of a front that are written
_FILE: Final = "points.json"
Point = tuple[float, float]


@dataclass(frozen=True)
class AgentPoints(StoredDocument):
    """The trials of one agent under one seed.

    ``feasible`` and ``over`` (the budget) are points of ``cost`` and the metric: (n, 2) each. ``front`` are the
    feasible ones that no other is better than in both, by rising cost. ``limit`` is the most that a policy may cost,
    ``dense`` what the dense network costs, None where that is not known.
    """

    agent: str
    seed: int
    cost: str
    judged_by: MetricRecord
    limit: float | None
    dense: float | None
    count: int
    feasible: tuple[tuple[float, ...], ...]
    over: tuple[tuple[float, ...], ...]
    front: tuple[tuple[float, ...], ...]


@dataclass
class _Points:
    """Points of an agent on their way; the value of a point says whether it is feasible."""

    first: Trial
    cost: str
    count: int = 0
    points: dict[Point, bool] = field(default_factory=dict)
    steps: Point | None = None
    front: list[Point] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Take one trial; one that failed, or lacks the cost, is counted alone."""
        self.count += 1
        if trial.state is TrialState.FAILED or self.cost not in trial.cost:
            return
        point, is_feasible = (trial.cost[self.cost], trial.evaluation.metric), trial.state is TrialState.COMPLETE
        if is_feasible:
            self._join_front(point)
        self._keep(point, is_feasible=is_feasible)
        while len(self.points) > MOST_POINTS:
            self._gather()

    def _keep(self, point: Point, *, is_feasible: bool) -> None:
        if self.steps is not None:
            x, y = (
                (round(value / step) * step if step else value) for value, step in zip(point, self.steps, strict=True)
            )
            point = (x, y)
        self.points[point] = is_feasible or self.points.get(point, False)

    def _gather(self) -> None:
        """Put the points into cells, or into cells of twice the size."""
        spans = [max(values) - min(values) for values in zip(*self.points, strict=True)]
        x, y = (max(2 * step, span / _CELLS) for step, span in zip(self.steps or (0.0, 0.0), spans, strict=True))
        self.steps = (x, y)
        earlier, self.points = self.points, {}
        for point, is_feasible in earlier.items():
            self._keep(point, is_feasible=is_feasible)

    def _join_front(self, point: Point) -> None:
        """Keep the front: rising cost, and a metric that gets better."""
        key = self.first.judged_by.better_first
        at = bisect_left(self.front, point[0], key=lambda other: other[0])
        is_tied = at < len(self.front) and self.front[at][0] == point[0]
        better = self.front[at] if is_tied else self.front[at - 1] if at else None
        if better is not None and key(better[1]) <= key(point[1]):
            return
        end = at
        while end < len(self.front) and key(self.front[end][1]) >= key(point[1]):
            end += 1
        self.front[at:end] = [point]

    def document(self, limits: Mapping[str, float], dense: Mapping[str, float]) -> AgentPoints:
        """Return the points as they are written; of a long front, points at equal distances in number."""
        stride = -(-len(self.front) // _MOST_FRONT) or 1
        return AgentPoints(
            agent=self.first.agent,
            seed=self.first.seed,
            cost=self.cost,
            judged_by=MetricRecord.of(self.first.judged_by),
            limit=limits.get(self.cost),
            dense=dense.get(self.cost),
            count=self.count,
            feasible=tuple(point for point, is_feasible in self.points.items() if is_feasible),
            over=tuple(point for point, is_feasible in self.points.items() if not is_feasible),
            front=tuple(self.front[::-1][::stride][::-1]),
        )


class TrialPoints:
    """The points of a job: those of its first agent, and of the agent that runs."""

    def __init__(self) -> None:
        self._limits: Mapping[str, float] = {}
        self._dense = Cost({})
        self._first: _Points | None = None
        self._latest: _Points | None = None

    def network(self, dense: Cost, limits: Mapping[str, float]) -> None:
        """Take the costs of the dense network, and the most that a policy may cost; the first limit is drawn."""
        self._dense, self._limits = dense, limits

    def add(self, trial: Trial) -> None:
        """Take one trial."""
        latest = self._latest
        if latest is None or (latest.first.agent, latest.first.seed) != (trial.agent, trial.seed):
            cost = next(iter((*self._limits, *trial.cost)), "")
            latest = self._latest = _Points(trial, cost)
            self._first = self._first or latest
        latest.add(trial)

    def write(self, folder: Path) -> None:
        """Write the points into the folder of the job.

        Raises:
            BadInputError: the file cannot be written.
        """
        kept = [self._first, self._latest] if self._first is not self._latest else [self._latest]
        written = [points.document(self._limits, self._dense) for points in kept if points is not None]
        with replacing(folder / _FILE) as temporary:
            temporary.write_text(json.dumps([points.to_json() for points in written]), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> tuple[AgentPoints, ...]:
        """Return what was last written, nothing where that is not there or cannot be read."""
        try:
            text = read_text(folder / _FILE)
            return tuple(read_as(tuple[AgentPoints, ...], parse_json(text, _FILE), _FILE))
        except (BadInputError, OSError):
            return ()
