"""Errors of every choice of every group: a selector's own, or the rise of the loss as measured by probes."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace
from amcsearch.evaluation import Curves, curves
from amcsearch.methods import RemovalErrors
from amcsearch.search.study import Study

__all__ = ["errors_of", "harms", "probed_curves", "probed_errors", "removal_errors"]

_FAILED: Final = 10.0  # error of a choice whose probe gave no finite loss, as a multiple of the worst that did


def removal_errors(space: PolicySpace, errors: RemovalErrors) -> list[NDArray[np.float64]]:
    """Return a selector's errors at the choices of every group, (choices,) for each."""
    groups = zip(space.groups, space.choices, strict=True)
    return [errors[group.name][choices // group.unit] for group, choices in groups]


def probed_errors(study: Study, points: int, prior: float = 0.1) -> list[NDArray[np.float64]]:
    """Return errors of every choice of every group, (choices,) each, from probes at up to ``points`` counts a group.

    ``prior`` is the weight of SPDY's quadratic one beside what was measured.
    """
    measured = curves(lambda batch: study.evaluate(batch, probe=True), study.space, points)
    return errors_of(study.space, harms(study.space, measured), prior)


def probed_curves(study: Study, most: int) -> Curves | None:
    """Probe every group at up to ``most`` kept counts; None where not even two a group can be afforded.

    Takes at most half of the evaluations, or else all but two of them. Probes may exceed the budget.
    """
    points, before = _points_that_fit(study, most), study.remaining
    if points < 2:
        return None
    measured = curves(lambda batch: study.evaluate(batch, probe=True), study.space, points)
    study.note(f"{study.agent}: {before - study.remaining} probes, up to {points} kept counts a group")
    return measured


def _points_that_fit(study: Study, most: int) -> int:
    free = sum(len(choices) > 1 for choices in study.space.choices)
    fitting = (study.remaining // 2 - 1) // max(1, free) + 1
    if fitting < 2 and study.remaining >= free + 3:
        return min(most, 2)
    return min(most, fitting)


def harms(space: PolicySpace, measured: Curves) -> list[NDArray[np.float64]]:
    """Rise of the loss in nats for every choice of every group, (choices,) each, with all other groups whole.

    Between measured points the rise is interpolated; it is made monotone (a narrower group is never called less
    harmful), and a loss that is not finite counts as infinite.
    """
    rises = []
    for group, choices in zip(space.groups, space.choices, strict=True):
        curve = measured[group.name]
        rise = np.maximum(np.where(np.isfinite(curve.loss), curve.loss - curve.loss[-1], np.inf), 0.0)
        rise = np.maximum.accumulate(rise[::-1])[::-1]
        with np.errstate(invalid="ignore"):  # between a finite and an infinite point: inf, or NaN at its very end
            harm = np.interp(choices, curve.kept, rise)
        rises.append(np.where(np.isnan(harm), np.inf, harm))
    return rises


def errors_of(space: PolicySpace, rises: list[NDArray[np.float64]], prior: float) -> list[NDArray[np.float64]]:
    """Return e_g for c = 1: what was measured, and the prior beside it; (choices,) for each group, all finite.

    A choice whose harm is infinite counts as ten times the worst finite one.
    """
    finite = np.concatenate([rise[np.isfinite(rise)] for rise in rises])
    narrowest = [rise[0] for rise in rises if len(rise) > 1 and np.isfinite(rise[0])]
    worst = float(finite.max(initial=0.0))
    scale = float(np.median(narrowest)) if narrowest else 0.0
    weight = prior * (scale or worst) or 1.0
    errors = []
    for choices, rise in zip(space.choices, rises, strict=True):
        removed = 1.0 - choices / choices[-1]
        known = np.where(np.isfinite(rise), rise, _FAILED * max(worst, weight))
        errors.append(known + weight * removed**2)
    return errors
