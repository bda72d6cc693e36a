"""Registry of selectors: name → what makes a selector from its parameters, one formula a file."""

from collections.abc import Callable, Mapping
from typing import Final

from amcsearch.methods.selector import Selector
from amcsearch.methods.selectors.amc import Amc
from amcsearch.methods.selectors.discrimination_aware import DiscriminationAware
from amcsearch.methods.selectors.fisher_ratio import FisherRatio
from amcsearch.methods.selectors.lasso import Lasso
from amcsearch.methods.selectors.obc import Obc
from amcsearch.methods.selectors.thinet import ThiNet

__all__ = ["SELECTORS", "Selector"]

SELECTORS: Final[Mapping[str, Callable[..., Selector]]] = {
    "amc": Amc,
    "thinet": ThiNet,
    "lasso": Lasso,
    "obc": Obc,
    "discrimination_aware": DiscriminationAware,
    "fisher_ratio": FisherRatio,
}
