"""Floating-point tensors in whatever a module returns, a tree of them (see ``batch``); tensors among arguments."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.graph.batch import tensors_of_tree

__all__ = ["first_tensor", "output_tensors", "tensors_in"]


def output_tensors(output: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors of a module's output, in order, however deep they are."""
    yield from (tensor for _, tensor in tensors_of_tree(output) if tensor.is_floating_point())


def first_tensor(output: object) -> Tensor:
    """Return the first floating-point tensor of a module's output: the one that counts (logits, features).

    Those at the top level come before deeper ones (hidden states, key-value caches).

    Raises:
        BadInputError: the output holds none.
    """
    tensors = [(path.count("."), tensor) for path, tensor in tensors_of_tree(output) if tensor.is_floating_point()]
    if tensors:
        return min(tensors, key=lambda pair: pair[0])[1]
    raise BadInputError(
        f"the model returns a {type(output).__name__} without a floating-point tensor; "
        "return a tensor, or a tuple, list, mapping or data class that holds one"
    )


def tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments or the results of a function, and those inside tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(value)
