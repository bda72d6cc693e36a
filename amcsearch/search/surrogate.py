"""Worth of a policy predicted from the policies evaluated so far, with its uncertainty: a Gaussian process.

    y(k) =     a + b · Σ_g e_g(k_g)                the additive prediction: errors of single groups, added up
             + Σ_g (u_g · e_g(k_g) + v_g · r_g)    what single groups count for beyond it,   r_g = 1 - k_g / channels
             + Σ_c w_c · log cost_c(k)             for rewards that look at costs c that are limited or traded
             + f(e, r, log cost) + noise           what adding up cannot say: a Matérn-5/2 process

The weights are normal with mean 0, b freer than the others. Their variance, the process and the noise maximise the
marginal likelihood; where the errors were computed, not guessed, times a log-normal prior, for three or four policies
alone often call the process or the noise nought. The first two lines are a table for every group, so the exact
programme finds the policy for which they are largest (``tables``).

y is the worth, compressed: 0 for the best policy so far and -log(1 + (best - worth) / s) for another, s the median
distance to the best. A search needs to tell good policies apart, and a broken one must not pull the weights about; yet
how bad it is still counts. A policy of an earlier study that is better than the best, for a wider budget allowed it,
is log(1 + (worth - best) / s).

Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, chapters 2 and 5; computed by scikit-learn.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace
from amcsearch.costs import CostGrid

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

__all__ = ["Surrogate", "expected_improvement"]

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Optimizer = Callable[..., tuple[Array, float]]
"""As scikit-learn's processes take one: of the negative log likelihood, where to begin, and bounds."""

_SHARED: Final = 3.0  # a priori deviation of b, in those of the other weights
_JITTER: Final = 1e-8
_USUAL: Final = np.log([0.1, 0.1, 2.0, 0.02])  # variance of weights and process, its length, variance of the noise
_FREEDOM: Final = np.array([1.0, 1.0, 0.7, 1.0])  # a priori deviations of their logarithms


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Return E[max(0, y - best)] of normal y, all (P,) (Jones, Schonlau & Welch 1998)."""
    from scipy.special import ndtr  # not for searches of other agents

    scale = np.maximum(deviation, 1e-300)
    z = (mean - best) / scale
    return np.asarray(scale * (z * ndtr(z) + np.exp(-0.5 * np.clip(z, -38.0, 38.0) ** 2) / np.sqrt(2.0 * np.pi)))


def _most_probable(loss: Callable[[Array], tuple[float, Array]], start: Array, bounds: Array) -> tuple[Array, float]:
    """Logarithms of the kernel's parameters of the largest posterior; ``loss``: -log likelihood and its gradient."""
    from scipy.optimize import minimize

    def posterior(logarithms: Array) -> tuple[float, Array]:
        value, slope = loss(logarithms)
        off = (logarithms - _USUAL) / _FREEDOM
        return value + 0.5 * float(off @ off), slope + off / _FREEDOM

    best = minimize(posterior, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return best.x, float(best.fun)


class Surrogate:
    """Learns how far policies of one space are behind the best, y of the module. ``fit`` comes first.

    Args:
        space: kept counts of every group.
        grid: prices policies.
        errors: of every choice of every group, (choices,) each, finite; their scale does not matter.
        costs: names of those that it looks at; all by default.
        guessed: whether something stands in for the errors, so that the kernel's parameters have no prior.
    """

    def __init__(
        self,
        space: PolicySpace,
        grid: CostGrid,
        errors: Sequence[Array],
        costs: Collection[str] | None = None,
        *,
        guessed: bool = False,
    ) -> None:
        self._space, self._grid = space, grid
        self._costs = grid.names if costs is None else costs
        self._optimizer: Optimizer | str = "fmin_l_bfgs_b" if guessed else _most_probable
        self._errors = [np.asarray(error, dtype=np.float64) for error in errors]
        self._dense = grid.price(space.dense[None, :])
        self._scale, self._mean, self._deviation = 1.0, 0.0, 0.0
        self._centre: Array = np.zeros(0)
        self._process: GaussianProcessRegressor

    def fit(self, kept: Counts, worth: Array, best: float | None = None) -> None:
        """Learn from policies (P, G) and their worths (P,), larger is better, all finite; y is 0 at ``best``.

        That is the largest worth by default.
        """
        from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

        sums = self._errors_of(kept).sum(axis=1)
        self._scale = float(sums.std()) or float(sums.mean()) or 1.0
        behind = (worth.max() if best is None else best) - worth
        distance = np.abs(behind)
        near = -np.sign(behind) * np.log1p(distance / (float(np.median(distance)) or float(distance.mean()) or 1.0))
        self._mean, self._deviation = float(near.mean()), float(near.std())
        self._centre = np.zeros(1)
        features = self._features(kept)
        self._centre = features.mean(axis=0)
        kernel = (
            ConstantKernel(0.1, (1e-4, 1e2)) * DotProduct(0.0, "fixed")
            + ConstantKernel(0.1, (1e-4, 1e1)) * Matern(3.0, (0.3, 30.0), nu=2.5)
            + WhiteKernel(0.01, (1e-4, 1.0))
        )
        self._fit(kernel, self._optimizer, features - self._centre, (near - self._mean) / (self._deviation or 1.0))

    def believe(self, kept: Counts) -> None:
        """Take the prediction of a policy (G,) as if it had been evaluated, so that what is proposed next differs.

        Ginsbourger, Le Riche & Carraro 2010, Kriging is well-suited to parallelize optimization: the believer.
        """
        process, features = self._process, self._features(kept[None, :])
        known = np.concatenate([process.X_train_, features])
        self._fit(process.kernel_, None, known, np.concatenate([process.y_train_, process.predict(features)]))

    def _fit(self, kernel: object, optimizer: Optimizer | str | None, features: Array, worth: Array) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor

        self._process = GaussianProcessRegressor(kernel, alpha=_JITTER, optimizer=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a variance at its bound
            self._process.fit(features, worth)

    @property
    def noise(self) -> float:
        """Standard deviation of what the model cannot tell apart, in the unit of y."""
        return self._deviation * float(np.sqrt(self._process.kernel_.k2.noise_level))

    def predict(self, kept: Counts) -> tuple[Array, Array]:
        """Return mean and standard deviation of y of policies (P, G), without the noise: (P,) each."""
        mean, deviation = self._process.predict(self._features(kept), return_std=True)
        variance = np.maximum(deviation**2 - self._process.kernel_.k2.noise_level, 0.0)
        return self._mean + self._deviation * mean, self._deviation * np.sqrt(variance)

    def tables(self, rng: np.random.Generator | None = None) -> list[Array]:
        """Return corrected errors of every choice, (choices,) each, 0 at full width and never rising with the width.

        At the mean of the weights, or where ``rng`` is given at a draw of them (Thompson sampling).
        """
        weights, groups = self._weights(rng), len(self._errors)
        of_error, of_ratio = _SHARED * weights[0] + weights[1 : 1 + groups], weights[1 + groups : 1 + 2 * groups]
        tables = []
        for g, (choices, errors) in enumerate(zip(self._space.choices, self._errors, strict=True)):
            worth = of_error[g] * errors / self._scale + of_ratio[g] * (1.0 - choices / choices[-1])
            tables.append(np.maximum.accumulate((worth[-1] - worth)[::-1])[::-1])
        return tables

    def _weights(self, rng: np.random.Generator | None) -> Array:
        """Weights of the features, (F,): their mean given what was learnt, or a draw."""
        process = self._process
        variance = float(process.kernel_.k1.k1.k1.constant_value)
        mean = variance * process.X_train_.T @ process.alpha_  # (F,)
        if rng is None:
            return np.asarray(mean)
        half = np.linalg.solve(process.L_, variance * process.X_train_)  # (P, F)
        values, vectors = np.linalg.eigh(variance * np.eye(len(mean)) - half.T @ half)
        return np.asarray(mean + vectors @ (np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal(len(mean))))

    def _errors_of(self, kept: Counts) -> Array:
        """Errors of policies by group, (P, G); between choices, as an earlier study's may be, on a line."""
        pairs = zip(self._space.choices, self._errors, strict=True)
        columns = [np.interp(kept[:, g], choices, errors) for g, (choices, errors) in enumerate(pairs)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(kept), 0))

    def _features(self, kept: Counts) -> Array:
        """The columns of the module's formula less their mean over what was learnt, (P, 1 + 2 G + C)."""
        errors, prices = self._errors_of(kept) / self._scale, self._grid.price(kept)
        costs = [np.log(np.maximum(prices[n], 1e-12) / max(self._dense[n][0], 1e-12)) for n in self._costs]
        columns = [_SHARED * errors.sum(axis=1), errors, 1.0 - kept / self._space.dense, *costs]
        return np.asarray(np.column_stack(columns) - self._centre)
