"""Torch structure: tracing, masking and removal of channel groups. The only floor that knows torch_pruning."""

from amcsearch.graph.masks import masked
from amcsearch.graph.outputs import first_tensor
from amcsearch.graph.removal import remove
from amcsearch.graph.renumbering import renumbered
from amcsearch.graph.slices import Kept, Skipped, TensorSlice, Trace
from amcsearch.graph.trace import trace

__all__ = ["Kept", "Skipped", "TensorSlice", "Trace", "first_tensor", "masked", "remove", "renumbered", "trace"]
