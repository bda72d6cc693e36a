"""The metric of a task: what a network is judged by, its unit, its direction, and how it is printed."""

import math
import re
from dataclasses import dataclass
from typing import Final

from amcsearch.core.errors import BadInputError

__all__ = ["ACCURACY", "METRICS", "Metric"]

_LABELS: Final = {"mse": "MSE", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "f1": "F1", "miou": "mIoU", "map": "mAP"}


@dataclass(frozen=True, slots=True)
class Metric:
    """What a task judges a network by; its values are floats in its own unit.

    ``name`` is an identifier, for columns of tables and keys of JSON. The unit ``%`` marks a share: its values are at
    most 1, are printed as per cent, and differ by percentage points. Any other unit is printed as it is; "" is none.

    Raises:
        BadInputError: a name that is no identifier in lower case.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise BadInputError(
                f"metric {self.name!r}: a name must be of small letters, digits and _, and begin with a letter"
            )

    @property
    def is_share(self) -> bool:
        """Whether values are shares, printed as per cent."""
        return self.unit == "%"

    @property
    def label(self) -> str:
        """The name for people, as at the head of a column: ``Accuracy``, ``MSE``, ``R²``."""
        text = self.name.replace("_", " ")
        return _LABELS.get(self.name, text[:1].upper() + text[1:])

    @property
    def word(self) -> str:
        """The name within a sentence: ``accuracy``, ``MSE``."""
        return _LABELS.get(self.name, self.name.replace("_", " "))

    @property
    def points(self) -> str:
        """What differences are counted in: ``points`` of a share, else the unit, or the word itself without a unit."""
        return "points" if self.is_share else self.unit or f"of {self.word}"

    @property
    def worst(self) -> float:
        """The worst value there is: 0 of a share, or infinitely bad; where lower is better, 1 of a share."""
        if self.is_share:
            return 0.0 if self.higher_is_better else 1.0
        return -math.inf if self.higher_is_better else math.inf

    def within(self, value: float) -> float:
        """Return the value, of a share at most 1: the end of an interval may lie beyond what there is."""
        return min(value, 1.0) if self.is_share else value

    @property
    def scale(self) -> float:
        """What to multiply a value by to print it: 100 of a share, else 1."""
        return 100.0 if self.is_share else 1.0

    def gain(self, value: float, reference: float) -> float:
        """How much better ``value`` is than ``reference``, in the metric's unit; negative where it is worse."""
        return value - reference if self.higher_is_better else reference - value

    def better_first(self, value: float) -> float:
        """A key that sorts values from the best to the worst, and NaN behind all."""
        return math.inf if math.isnan(value) else -value if self.higher_is_better else value

    def text(self, value: float, digits: int = 2) -> str:
        """Write a value: ``93.75 %`` with ``digits`` of a share, else four significant digits and the unit."""
        if self.is_share:
            return f"{100.0 * value:.{digits}f} %"
        return f"{value:.4g}" + (f" {self.unit}" if self.unit else "")

    def difference_text(self, value: float, digits: int = 2) -> str:
        """Write a difference of values: ``1.25 points`` of a share, else as ``text``."""
        return f"{100.0 * value:.{digits}f} points" if self.is_share else self.text(value, digits)


ACCURACY: Final = Metric("accuracy", "%")
"""Share of right predictions."""

_KNOWN: Final = (
    ACCURACY,
    *(Metric(name, "%") for name in ("pixel_accuracy", "cosine", "f1", "miou", "map")),
    *(Metric(name, "", higher_is_better=False) for name in ("mse", "mae", "rmse", "perplexity")),
    Metric("r2"),
)

METRICS: Final = {metric.name: metric for metric in _KNOWN}
"""The metrics of the built-in tasks by name; a cosine, in [-1, 1], is printed as a share."""
