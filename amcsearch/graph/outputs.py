"""Tensors in whatever a module returns: a tensor, a tuple or list, or a mapping (ModelOutput)."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from amcsearch.core import BadInputError

__all__ = ["first_tensor", "output_tensors"]


def output_tensors(output: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors at the top level of a module's output, in order.

    Deeper ones (hidden states, key-value caches) are by-products and are left out.
    """
    if isinstance(output, Tensor):
        values: list[object] = [output]
    elif isinstance(output, Mapping):
        values = list(output.values())
    elif isinstance(output, tuple | list):
        values = list(output)
    else:
        values = []
    yield from (value for value in values if isinstance(value, Tensor) and value.is_floating_point())


def first_tensor(output: object) -> Tensor:
    """Return the first floating-point tensor of a module's output: the one that counts (logits, features).

    Raises:
        BadInputError: the output holds none.
    """
    for tensor in output_tensors(output):
        return tensor
    raise BadInputError(
        f"the model returns a {type(output).__name__} without a floating-point tensor; "
        "return a tensor, or a tuple or mapping that holds one"
    )
