"""Whose time is it: nodes of ONNX Runtime's optimised graph → layers of the traced network.

1. Original graph: a node inside a layer's module (its name holds the module path) or fed by the layer's weight is
   that layer's; a node directly inside a module that computes attention is the attention's (``MODULE.attention``).
   Products without a weight that are directly inside a module are its products of maps, in order.
   Any other node (add, pool, activation, reshape) belongs to the layer it follows; before the first layer, to the
   one it feeds.
2. Optimised graph: fusions keep the name of a node or tensor of the original graph, with a suffix. Reorders and
   reshapes the runtime inserted belong to the layer they follow.

So every microsecond of a profile lands on exactly one layer, and the sum over layers is the sum over nodes.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from amcsearch.runtime import WRAPPER, ExecutedNode

__all__ = ["KernelRun", "kernel_name", "kernel_runs", "optimised_owners", "original_owners"]

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
    layers = dict(zip((node.name for node in graph.node), optimised_owners(graph, owners), strict=True))
    kernels = {node.name: kernel_name(node) for node in graph.node}
    last = next((layer for layer in layers.values() if layer is not None), "")
    runs = []
    for node in nodes or [ExecutedNode(node.name, "", 0.0, [], []) for node in graph.node]:
        last = layers.get(node.name) or last
        runs.append(KernelRun(last, kernels.get(node.name, node.op_type), node.us / US_PER_MS))
    return runs
