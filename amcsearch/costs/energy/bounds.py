"""Lower bounds of the bytes that cross the edge of a memory: what must move, and what a memory of its size forces.

    compulsory       |W|·c_w + |I|·c_i + |O|·c_o            every word once
    communication    2·MACs·√(min(c_w·c_i·f_o, c_i·c_o·f_w, c_w·c_o·f_i) / (ρ·B))

for B bytes inside the edge, inner memories included, ρ uses of an input word by one filter, and a word's bytes c in
crossing and f inside; 2·MACs·√(c/(ρ·B/c)) when all are alike: Hong and Kung (1981) with the window reuse of Chen, Han
and Wang (HPCA 2020, arXiv 1911.05662). It holds for every order and tiling of ``traffic``: each order keeps one
tensor's tile within B, so that the product of the other two tensors' traffic is at least MACs²·c·c·f/(ρ·B), and a sum
is at least twice the root of its product. Adding the outputs, as theirs does, is right only while partial sums stay;
weights that stay can go below it, so it is a bound of its own, to hold beside published output-stationary designs.
"""

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind
from amcsearch.costs.energy.traffic import INPUTS, OUTPUTS, WEIGHTS, Edge, weigh
from amcsearch.costs.energy.work import Widths, least_words, products

__all__ = ["communication_bytes", "compulsory_bytes", "least_bytes", "output_stationary_bytes"]

Array = NDArray[np.float64]
_NESTS = (LayerKind.CONV, LayerKind.LINEAR)


def compulsory_bytes(widths: Widths, edge: Edge) -> Array:
    """Bytes of every word that must cross once: (L,)."""
    return weigh(least_words(widths), edge.moved)


def communication_bytes(widths: Widths, edge: Edge, total: Array) -> Array:
    """Bytes forced by ``total`` bytes of memory inside the edge: (L,); 0 for layers that are no loop nest."""
    (held_w, held_i, held_o), (w, i, o) = edge.held, edge.moved
    return _forced(widths, np.minimum(np.minimum(w * i * held_o, i * o * held_w), w * o * held_i), total)


def output_stationary_bytes(widths: Widths, edge: Edge, total: Array) -> Array:
    """Bytes forced while partial sums stay inside, the outputs included: (L,)."""
    moved = edge.moved
    forced = _forced(widths, moved[WEIGHTS] * moved[INPUTS] * edge.held[OUTPUTS], total)
    total_bytes: Array = forced + least_words(widths)[OUTPUTS] * moved[OUTPUTS]
    return total_bytes


def least_bytes(widths: Widths, edge: Edge, total: Array) -> Array:
    """Return the larger of the bounds that hold for every order: (L,)."""
    least: Array = np.maximum(compulsory_bytes(widths, edge), communication_bytes(widths, edge, total))
    return least


def _forced(widths: Widths, bytes_cubed: Array, total: Array) -> Array:
    if widths.layer.kind not in _NESTS:
        return np.zeros_like(widths.in_channels)
    reuse = widths.nest.products / widths.nest.touched
    forced: Array = 2 * products(widths) * np.sqrt(bytes_cubed / (reuse * total))
    return forced
