"""What variants of a network are measured for, and which of its policies take each role.

Half the variants that build a table lie on the channel grids of a block of the runtime's layout and of half a block,
half have any widths: the former are what a search proposes, the latter teach where the runtime leaves its layout. Where
a table of the device exists, those of each grid are chosen among many by where it is least sure. Held-out variants come
from the same three grids and take no part in the table; anchors are whole runs by which a table is brought up to date,
or carried to another network or device: the extremes first, then widths that are stratified over all of them, a third
on a channel grid, so that few runs say much of every layer. Lowered variants are never run: the
runtime's optimised graph alone is read, which tells what kernels the layers of a new network become. A grouped
convolution of which each group keeps one channel is depthwise, and so are no wider ones: where the narrowest widths
make another layer of any, they are measured too, or no table of the variants would know its kernel. So is any other
policy of a sample that makes a layer of which the chosen ones would tell nothing; a plan without room for all of them
is refused before anything is measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from amcsearch.core import BadInputError, LayerKind, LayerSpec, NetworkSpec, PruningPolicy
from amcsearch.costs import FOLDED, LatencyModel, Signature, nearest_known, signature
from amcsearch.measure.plan.variants import narrow_policy, random_policies, smallest, stratified_policies

__all__ = [
    "ANCHOR",
    "BUILDING",
    "HELD_OUT",
    "LOWERED",
    "anchor_policies",
    "cast",
    "held_out_policies",
    "lowered_policies",
    "training_policies",
]

BUILDING: Final = "building"
HELD_OUT: Final = "held_out"
ANCHOR: Final = "anchor"
LOWERED: Final = "lowered"
BLOCK: Final = 16  # channels of the widest blocked layout; narrower ones divide it
SHARES: Final = ((BLOCK, 0.25), (BLOCK // 2, 0.25), (1, 0.5))  # of variants on each channel grid
POOL: Final = 8  # candidates for each variant chosen by uncertainty
SAMPLE: Final = 128  # policies whose layers the variants of a table must tell something of


def _mixed(
    network: NetworkSpec, n: int, rng: np.random.Generator, model: LatencyModel | None = None
) -> list[PruningPolicy]:
    """n policies on the three grids, interleaved so that every beginning of the list is mixed too.

    With a model those of each grid are where it is least sure, and the grids keep their shares: a model is least sure
    off the grids, and a table without networks on them errs where searches look.
    """
    counts = [round(n * share) for _, share in SHARES[:-1]]
    drawn = [
        _on_grid(network, count, multiple, rng, model)
        for (multiple, _), count in zip(SHARES, [*counts, n - sum(counts)], strict=True)
    ]
    spread = [(i / max(len(policies), 1), policy) for policies in drawn for i, policy in enumerate(policies)]
    return [policy for _, policy in sorted(spread, key=lambda pair: pair[0])]


def _on_grid(
    network: NetworkSpec, n: int, multiple: int, rng: np.random.Generator, model: LatencyModel | None
) -> list[PruningPolicy]:
    """n random policies on a channel grid, or of more those of which a model is least sure."""
    if model is None:
        return random_policies(network, n, multiple, rng)
    pool = list(dict.fromkeys(random_policies(network, POOL * n, multiple, rng)))
    layers = [network.with_channels(policy).layers for policy in pool]
    doubt = [model.uncertainty(variant) / model.predict(variant) for variant in layers]
    return [pool[i] for i in np.argsort(doubt)[::-1][:n]]


def _narrowest(network: NetworkSpec) -> list[PruningPolicy]:
    """The policy of the narrowest widths, where they make a layer that no wider ones make; none elsewhere."""
    narrow = smallest(network, 1)
    wide = [network.layers, network.with_channels(smallest(network, BLOCK)).layers]
    known = {signature(layer) for layers in wide for layer in layers}
    changed = (layer for layer in network.with_channels(narrow).layers if signature(layer) not in known)
    return [narrow] if any(not _is_single(layer) for layer in changed) else []


def _is_single(layer: LayerSpec) -> bool:
    """Whether it is a convolution of one channel, which tables price as a depthwise one of two if need be."""
    return layer.kind is LayerKind.CONV and (layer.in_channels, layer.out_channels) == (1, 1)


def training_policies(
    network: NetworkSpec, n: int, rng: np.random.Generator, model: LatencyModel | None = None
) -> list[PruningPolicy]:
    """Distinct policies that build a table, the smallest first; chosen by the uncertainty of ``model`` if one is given.

    They make every layer that a policy of the network makes, widths aside. Fewer than n where a network has no more.

    Raises:
        BadInputError: n policies cannot make all of these layers; names one of them, and how many policies can.
    """
    if not network.groups:
        return []
    first = [smallest(network, BLOCK), *_narrowest(network)]
    drawn = [*_mixed(network, n - 1, rng, model), *_mixed(network, n, rng)]
    chosen = _first_new([*first, *drawn], n, [network.dense])
    if not _further(network, chosen):
        return chosen
    more = _further(network, first)
    needed = _first_new([*first, *more], n + 1, [network.dense])
    if len(needed) > n:
        layer = list(more.values())[-1]
        raise BadInputError(
            f"latency table: with {n} variants a layer that searches ask for would be measured in none of them: "
            f"{layer.name!r} of {layer.in_channels} inputs, {layer.out_channels} outputs and {layer.conv_groups} "
            f"groups; measure at least {len(first) + len(more)} variants"
        )
    return _first_new([*needed, *drawn], n, [network.dense])


def _further(network: NetworkSpec, chosen: Sequence[PruningPolicy]) -> dict[PruningPolicy, LayerSpec]:
    """Policies of a fixed sample that make a layer of which the chosen ones tell nothing, each with that layer."""
    known = {signature(layer) for policy in (network.dense, *chosen) for layer in network.with_channels(policy).layers}
    rng = np.random.default_rng(0)  # its own, so that what is drawn elsewhere does not depend on it
    more: dict[PruningPolicy, LayerSpec] = {}
    for policy in [smallest(network, 1), *random_policies(network, SAMPLE, 1, rng)]:
        layers = network.with_channels(policy).layers
        unknown = next((layer for layer in layers if not _is_known(layer, known)), None)
        if unknown is not None:
            more[policy] = unknown
            known.update(map(signature, layers))
    return more


def _is_known(layer: LayerSpec, known: set[Signature]) -> bool:
    return layer.kind in FOLDED or _is_single(layer) or nearest_known(layer, known) is not None


def anchor_policies(
    network: NetworkSpec, n: int, rng: np.random.Generator, taken: Sequence[PruningPolicy]
) -> list[PruningPolicy]:
    """Distinct policies from the smallest on the blocks' grid and one of narrow widths on; fewer than n at most."""
    if not network.groups:
        return []
    first = [smallest(network, BLOCK), narrow_policy(network, rng)]
    grids = [BLOCK // 2 if number % 3 == 0 else 1 for number in range(n - len(first))]
    drawn = [*first, *stratified_policies(network, grids, rng), *_mixed(network, 2 * n, rng)]
    return _first_new(drawn, n, [network.dense, *taken])


def held_out_policies(
    network: NetworkSpec, n: int, rng: np.random.Generator, taken: Sequence[PruningPolicy]
) -> list[PruningPolicy]:
    """Policies from all grids that are not among ``taken``; fewer than n where a network has no more."""
    drawn = _mixed(network, 2 * n, rng) if network.groups else []
    return _first_new(drawn, n, [network.dense, *taken])


def lowered_policies(
    network: NetworkSpec, n: int, rng: np.random.Generator, taken: Sequence[PruningPolicy]
) -> list[PruningPolicy]:
    """As ``held_out_policies``, the narrowest first where it makes a layer that no wider one makes."""
    first = _narrowest(network) if network.groups else []
    return _first_new([*first, *held_out_policies(network, n, rng, taken)], n, taken)


def _first_new(drawn: Sequence[PruningPolicy], n: int, taken: Iterable[PruningPolicy]) -> list[PruningPolicy]:
    """The first n distinct policies that are not among ``taken``, fewer where there are no more."""
    known = set(taken)
    return [policy for policy in dict.fromkeys(drawn) if policy not in known][:n]


def cast(
    network: NetworkSpec, wanted: Mapping[str, int], rng: np.random.Generator, model: LatencyModel | None
) -> list[tuple[str, PruningPolicy]]:
    """Distinct variants with their roles, as many of each as ``wanted``, the roles mixed evenly.

    Fewer where a network has no more. Those that build are chosen by the uncertainty of ``model`` if one is given.
    """
    building = training_policies(network, wanted[BUILDING], rng, model) if wanted[BUILDING] else []
    kept_out = held_out_policies(network, wanted[HELD_OUT], rng, building)
    anchors = anchor_policies(network, wanted[ANCHOR], rng, [*building, *kept_out])
    lowered = lowered_policies(network, wanted[LOWERED], rng, [*building, *kept_out, *anchors])
    roles = {BUILDING: building, HELD_OUT: kept_out, ANCHOR: anchors, LOWERED: lowered}
    spread = [
        ((i + 0.5) / len(policies), role, policy)
        for role, policies in roles.items()
        for i, policy in enumerate(policies)
    ]
    return [(role, policy) for _, role, policy in sorted(spread, key=lambda triple: triple[0])]
