"""One-shot pruning: choose the masks before the first step, then train what is left.

    network  the best weights of all tensors together, their scores made comparable by a normaliser: exactly the target
    layer    the same share of every tensor, in whole weights that add up to the target
    row      every row of n weights loses round(sparsity * n): near the target, and on it where that is a whole number
    pattern  the n best of every m consecutive columns of a row stay, and so do the columns left over at its end

Rows are those of the matrix over unfolded patches: a convolution's row is C_in / groups * kH * kW columns, channel by
channel. Wanda compares within rows (Sun et al. 2023, arXiv 2306.11695); 2 of 4 is what sparse tensor cores multiply by
(Mishra et al. 2021, arXiv 2104.08378); LAMP is a normaliser (Lee et al. 2021, arXiv 2010.07611).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.global_ranking import NORMALISERS, normalised
from amcsearch.methods.mask_schedule import Granularity, Masks, MaskSchedule, Moment
from amcsearch.methods.weight_choice import apportion, keep_by_count, keep_n_of_m, keep_overall, keep_rows, n_kept

__all__ = ["OneShot", "Pattern", "Within", "one_shot_masks"]

Within = Literal["network", "layer", "row"]
_ROUNDING: Final = 1e-3  # of a sparsity that the user wrote: 0.667 is 1 of 3


def one_shot_masks(
    scores: Mapping[str, Tensor], sparsity: float, within: Within = "network", normaliser: str = "none"
) -> dict[str, Tensor]:
    """Return by tensor name the bool mask (true: kept) of the best weights, compared within rows, tensors or overall.

    Over the whole network and in tensors every tensor keeps at least its best. ``normaliser`` counts over the network.

    Raises:
        BadInputError: a sparsity outside [0, 1), an unknown normaliser, or fewer weights kept than tensors.
    """
    if not 0.0 <= sparsity < 1.0:
        raise BadInputError(f"sparsity = {sparsity}, must be in [0, 1)")
    if within == "row":
        return {name: keep_rows(value, sparsity) for name, value in scores.items()}
    sizes = {name: value.numel() for name, value in scores.items()}
    n_keep = n_kept(sum(sizes.values()), sparsity)
    if within == "layer":
        return keep_by_count(scores, apportion(dict.fromkeys(scores, 1.0 - sparsity), sizes, n_keep))
    return keep_overall({name: normalised(value, normaliser) for name, value in scores.items()}, n_keep)


@dataclass(frozen=True)
class Pattern:
    """``n`` weights kept of every ``m`` consecutive ones.

    Raises:
        BadInputError: n outside 1 … m.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise BadInputError(f"n:m = {self.n}:{self.m}: n weights are KEPT of every m, so n must be from 1 to m")

    @property
    def sparsity(self) -> float:
        """Share that goes where rows are whole runs."""
        return 1.0 - self.n / self.m


@dataclass(frozen=True)
class OneShot(MaskSchedule):
    """Prune everything before the first step, then train: over the network, in layers or rows, or n of every m.

    Raises:
        BadInputError: an unknown normaliser, one that nothing is compared by, or a pattern beside another choice.
    """

    within: Within = "network"
    normaliser: str = "none"
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        if self.normaliser not in NORMALISERS:
            raise BadInputError(
                f"one_shot: normaliser = {self.normaliser!r} is unknown; known: {', '.join(NORMALISERS)}"
            )
        if self.normaliser != "none" and self.within != "network":
            raise BadInputError(
                f"one_shot: normaliser = {self.normaliser!r} compares layers, within = {self.within!r} does not; leave "
                "out the normaliser, or choose within: network"
            )
        if self.pattern is not None and (self.within, self.normaliser) != ("network", "none"):
            raise BadInputError("one_shot: a pattern compares within its runs of weights; leave out within, normaliser")

    def check_target(self, sparsity: float | None, granularity: Granularity) -> None:
        """Refuse rows and patterns of channels, and a pattern with another sparsity than its own.

        Raises:
            BadInputError: names the target that agrees with the pattern.
        """
        by_row = self.within == "row" or self.pattern is not None
        if by_row and granularity == "channels":
            setting = "pattern" if self.pattern is not None else "within: row"
            raise BadInputError(
                f"one_shot: {setting} chooses weights within rows, and sparsify.granularity = 'channels' has no rows; "
                "give sparsify.granularity weights"
            )
        if self.pattern is not None and sparsity is not None and abs(sparsity - self.pattern.sparsity) > _ROUNDING:
            raise BadInputError(
                f"sparsify.target.sparsity = {sparsity:g}, but {self.pattern.n} of {self.pattern.m} weights kept are a "
                f"sparsity of {self.pattern.sparsity:g}; give sparsify.target {{sparsity: {self.pattern.sparsity:g}}}"
            )

    def begin(self, moment: Moment) -> Masks:
        """Choose the masks."""
        scores = moment.scores()
        if self.pattern is not None:
            return {name: keep_n_of_m(value, self.pattern.n, self.pattern.m) for name, value in scores.items()}
        return one_shot_masks(scores, moment.plan.sparsity, self.within, self.normaliser)

    def masks(self, moment: Moment) -> None:
        """Nothing more."""
        del moment
