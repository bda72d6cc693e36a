"""Whose time is it: nodes of ONNX Runtime's optimised graph → layers of the traced network.

1. Original graph: a node inside a layer's module (its name holds the module path) or fed by the layer's weight is
   that layer's; a node directly inside a module that computes attention is the attention's (``MODULE.attention``).
   Products without a weight that are directly inside a module are its products of maps, in order.
   Any other node (add, pool, activation, reshape) belongs to the layer it follows; before the first layer, to the
   one it feeds.
2. Optimised graph: fusions keep the name of a node or tensor of the original graph, with a suffix. Reorders and
   reshapes the runtime inserted belong to the layer they follow.
3. Profile: its names say which node was executed, but for inserted ones. Graph and profile come from two loads of the
   model, and each load numbers reorders in another order. An inserted node is told by when it was executed: after the
   node it reads, before those that read it, and on a tensor of the right shape.

So every microsecond of a profile lands on exactly one layer, and the sum over layers is the sum over nodes.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from amcsearch.runtime import WRAPPER, ExecutedNode

__all__ = ["ATTRIBUTION", "KernelRun", "kernel_name", "kernel_runs", "optimised_owners", "original_owners"]

ATTRIBUTION: Final = "order of execution"
"""By what inserted nodes are told, as tables state it."""
US_PER_MS: Final = 1e3
MULTIPLYING: Final = frozenset({"MatMul", "Gemm", "Einsum"})
DOMAINS: Final = {"": "", "ai.onnx": "", "com.microsoft.nchwc": "nchwc.", "com.microsoft": "ms."}


@dataclass(frozen=True, slots=True)
class KernelRun:
    """One executed node of the optimised graph: its layer, its kernel, and how long the profiler saw it run, in ms."""

    layer: str
    kernel: str
    profiled_ms: float


def _module_path(node_name: str, known: set[str]) -> str:
    """Dotted path of the deepest known module in a node name such as ``/network/blocks/blocks.0/conv/Conv``.

    The tracing exporter repeats the container's name for numbered children (``blocks/blocks.0``) and counts the calls
    of a module called again (``relu_1``).
    """
    parts = node_name.strip("/").split("/")[:-1]
    path, previous = "", ""
    for part in parts[1:] if parts and parts[0] == WRAPPER else parts:
        names = [part, part.removeprefix(f"{previous}."), re.sub(r"_\d+$", "", part)]
        inner = next((p for n in names if (p := f"{path}.{n}".lstrip(".")) in known), None)
        if inner is None:
            break
        path, previous = inner, part
    return path


def _owner_by_weight(node: onnx.NodeProto, weights: Mapping[str, str], layers: set[str]) -> str | None:
    for name in node.input:
        parameter = str(weights.get(name, name)).removeprefix(f"{WRAPPER}.")
        for layer in (parameter, parameter.rpartition(".")[0]):
            if layer in layers:
                return layer
    return None


def _products(layers: Iterable[str]) -> dict[str, list[str]]:
    """Module → its products of maps, ``MODULE.product``, ``MODULE.product#2``, …, in order."""
    numbered: dict[str, dict[int, str]] = defaultdict(dict)
    for name in layers:
        path, _, leaf = name.rpartition(".")
        kind, _, number = leaf.partition("#")
        if kind == "product":
            numbered[path][int(number or 1)] = name
    return {path: [names[number] for number in sorted(names)] for path, names in numbered.items()}


def _through_identities(graph: onnx.GraphProto) -> dict[str, str]:
    """Tensor → the initializer it is a copy or transpose of."""
    source = {tensor.name: tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in {"Identity", "Transpose"} and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
    return source


def _follow(nodes: Sequence[onnx.NodeProto], owners: list[str | None]) -> list[str | None]:
    """Fill gaps: from the latest producer among a node's inputs, else from its first consumer."""
    made_by: dict[str, int] = {}
    for i, node in enumerate(nodes):
        if owners[i] is None:
            producers = [made_by[name] for name in node.input if name in made_by]
            owned = [p for p in producers if owners[p] is not None]
            owners[i] = owners[max(owned)] if owned else None
        made_by.update(dict.fromkeys(node.output, i))
    wanted_by: dict[str, str] = {}
    for i in reversed(range(len(nodes))):
        if owners[i] is None:
            owners[i] = next((wanted_by[name] for name in nodes[i].output if name in wanted_by), None)
        owner = owners[i]
        if owner is not None:
            wanted_by.update(dict.fromkeys(nodes[i].input, owner))
    return owners


def original_owners(graph: onnx.GraphProto, layers: Iterable[str]) -> dict[str, str]:
    """Map every node name and every tensor a node writes to a layer name.

    Args:
        graph: an exported graph, node names holding module paths.
        layers: names of the layers, as in ``NetworkSpec``.
    """
    names = set(layers)
    layer_of = {name.removesuffix(".attention"): name for name in names} | {name: name for name in names}
    known = {".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count(".") + 1)}
    weights, products = _through_identities(graph), _products(names)
    owners: list[str | None] = []
    for node in graph.node:
        path = _module_path(node.name, known)
        by_weight = _owner_by_weight(node, weights, names)
        inside = by_weight is not None and by_weight.startswith(f"{path}." if path else "")
        owner = by_weight if inside else layer_of.get(path)
        if owner is None and by_weight is None and node.op_type in MULTIPLYING and products.get(path):
            owner = products[path].pop(0) if len(products[path]) > 1 else products[path][0]
        owners.append(owner)
    result: dict[str, str] = {}
    for node, owner in zip(graph.node, _follow(graph.node, owners), strict=True):
        if owner is not None:
            result.update(dict.fromkeys((node.name, *node.output), owner))
    return result


def _longest_known(name: str, owners: Mapping[str, str]) -> str | None:
    """Owner of the longest known name that ``name`` starts with: fusions only append."""
    known = name
    while known and known not in owners:
        cut = max(known.rfind("/"), known.rfind("_"), known.rfind("."))
        known = known[: max(cut, 0)]
    return owners.get(known)


def optimised_owners(graph: onnx.GraphProto, owners: Mapping[str, str]) -> list[str | None]:
    """Layer of each node of the optimised graph, None only where the graph has no layer at all."""
    layers: list[str | None] = []
    for node in graph.node:
        by_output = next((owners[name] for name in node.output if name in owners), None)
        layers.append(_longest_known(node.name, owners) or by_output)
    return _follow(graph.node, layers)


def kernel_name(node: onnx.NodeProto) -> str:
    """What the runtime runs for a node: its operator with what is fused to it, such as ``nchwc.Conv+Relu+Add``."""
    parts = [DOMAINS.get(node.domain, f"{node.domain}.") + node.op_type]
    activation = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
    if activation:
        parts.append(activation)
    if node.op_type in ("Conv", "FusedConv") and len(node.input) == 4 and node.input[3]:
        parts.append("Add")
    return "+".join(parts)


def kernel_runs(
    graph: onnx.GraphProto, owners: Mapping[str, str], nodes: Sequence[ExecutedNode] = ()
) -> list[KernelRun]:
    """The kernels of an optimised graph, each with its layer; their profiled times where a profile is given.

    Args:
        graph: as the runtime executed it.
        owners: of the original graph, see ``original_owners``.
        nodes: the profile, in order of execution. A node that the graph does not hold (a provider's own fusion) is
            given to the layer of the node before it.
    """
    owned = optimised_owners(graph, owners)
    if not nodes:
        return [KernelRun(layer or "", kernel_name(node), 0.0) for node, layer in zip(graph.node, owned, strict=True)]
    last = next((layer for layer in owned if layer is not None), "")
    runs = []
    for node, number in zip(nodes, _nodes_of_graph(graph, owners, nodes), strict=True):
        last = (None if number is None else owned[number]) or last
        kernel = node.op_type if number is None else kernel_name(graph.node[number])
        runs.append(KernelRun(last, kernel, node.us / US_PER_MS))
    return runs


@dataclass
class _Window:
    """Between which executed nodes a node of the graph ran, and the shapes of what it may have read, () if unknown."""

    after: int = -1
    before: int = sys.maxsize
    shapes: Sequence[list[int]] = ()

    def misfit(self, at: int, node: ExecutedNode) -> tuple[bool, bool, int]:
        """How little the node executed at a place looks like this one; of several that fit, the first to be read."""
        is_other = bool(self.shapes and node.input_shapes) and node.input_shapes[0] not in self.shapes
        return self.after > at, is_other, self.before


def _windows(graph: onnx.GraphProto, executed: Sequence[ExecutedNode], ran: Mapping[int, int]) -> list[_Window]:
    """The window of each node of the graph; ``ran`` says when nodes ran, and others are seen through."""
    made_by = {name: i for i, node in enumerate(graph.node) for name in node.output}
    edges = [(made_by[name], i) for i, node in enumerate(graph.node) for name in node.input if name in made_by]
    windows = [_Window() for _ in graph.node]
    for producer, i in edges:
        windows[i].after = max(windows[i].after, ran.get(producer, windows[producer].after))
        if producer in ran:
            windows[i].shapes = [*windows[i].shapes, *executed[ran[producer]].output_shapes]
    for producer, i in reversed(edges):
        windows[producer].before = min(windows[producer].before, ran.get(i, windows[i].before))
    return windows


def _nodes_of_graph(
    graph: onnx.GraphProto, owners: Mapping[str, str], executed: Sequence[ExecutedNode]
) -> list[int | None]:
    """The number in the graph of each executed node; None for one that the graph does not hold."""
    by_name = {node.name: i for i, node in enumerate(graph.node)}
    inserted = {i for i, node in enumerate(graph.node) if _longest_known(node.name, owners) is None}
    node_of = [by_name.get(node.name) for node in executed]
    ran = {number: at for at, number in enumerate(node_of) if number is not None and number not in inserted}
    windows, left = _windows(graph, executed, ran), sorted(inserted)
    for at, node in enumerate(executed):
        if node_of[at] in inserted:
            misfits = {i: windows[i].misfit(at, node) for i in left if graph.node[i].op_type == node.op_type}
            node_of[at] = min(misfits, key=misfits.__getitem__, default=None)
            left = [i for i in left if i != node_of[at]]
    return node_of
