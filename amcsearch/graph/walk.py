"""Follow the edges of a dependency graph from one layer's output channels; knows nodes by shape, imports no library.

Torch-Pruning's own walk rebuilds every index map on each call, keeps one origin where an index has two, and may not
end where slices feed each other (rotary embeddings); this one visits each (index, origin) pair once and is bounded.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Index", "walk"]

_MIXED = 4  # pairs per channel at one node beyond which channels are held to be mixed

Handler = Callable[..., Any]


class Index(NamedTuple):
    """A channel ``idx`` of some node that moves with channel ``root_idx`` of the layer the walk began at."""

    idx: int
    root_idx: int


def walk(node: Any, handler: Handler, width: int, limit: int) -> tuple[dict[tuple[Any, Handler], set[Index]], set[int]]:
    """Return every (node, handler) reached with its index pairs, and the origins whose indices made no sense.

    Args:
        node: graph node of the layer the walk begins at; has ``dependencies`` with ``target``, ``handler``,
            ``index_mapping`` and ``is_triggered_by``.
        handler: what prunes its output channels.
        width: its output channels.
        limit: the widest layer of the network: indices beyond it are strays.
    """
    reached: dict[tuple[Any, Handler], set[Index]] = defaultdict(set)
    strays: set[int] = set()
    stack = [(node, handler, [Index(i, i) for i in range(width)])]
    while stack:
        node, handler, pairs = stack.pop()
        here = reached[node, handler]
        fresh = [pair for pair in dict.fromkeys(pairs) if pair not in here]
        lost = {p.root_idx for p in fresh if p.root_idx is not None and not 0 <= p.idx < limit}
        if len(here) + len(fresh) > _MIXED * limit or any(p.root_idx is None for p in fresh):
            lost = set(range(width))
        strays |= lost
        fresh = [pair for pair in fresh if pair.root_idx not in lost and pair.root_idx is not None]
        here.update(fresh)
        if not fresh:
            continue
        for edge in node.dependencies:
            if edge.is_triggered_by(handler):
                mapped: Any = fresh
                for mapping in edge.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                stack.append((edge.target, edge.handler, [Index(p.idx, p.root_idx) for p in mapped]))
    return dict(reached), strays
