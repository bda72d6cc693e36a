"""Torch structure: tracing, masking and removal of channel groups."""

from amcsearch.graph.batch import (
    Batch,
    Batches,
    HeldBatches,
    MappedBatches,
    PerSample,
    Tree,
    as_batch,
    map_tensors,
    plain_tree,
    tensors_of_tree,
)
from amcsearch.graph.folding import check_folded, fold_weights
from amcsearch.graph.layout import channels_first, channels_last, make_channels_first, takes_channels_last
from amcsearch.graph.masks import masked
from amcsearch.graph.modes import evaluating, modes_kept, usual_modes
from amcsearch.graph.outputs import first_tensor, output_tensors
from amcsearch.graph.removal import duplicate, remove, removed_positions, renumbered, tensors_of, vanished_layers
from amcsearch.graph.slices import Kept, Skipped, TensorSlice, Trace, check_kept
from amcsearch.graph.tracing.branches import branch_lines
from amcsearch.graph.tracing.trace import trace
from amcsearch.graph.vanished import ConstantLayer

__all__ = [
    "Batch",
    "Batches",
    "ConstantLayer",
    "HeldBatches",
    "Kept",
    "MappedBatches",
    "PerSample",
    "Skipped",
    "TensorSlice",
    "Trace",
    "Tree",
    "as_batch",
    "branch_lines",
    "channels_first",
    "channels_last",
    "check_folded",
    "check_kept",
    "duplicate",
    "evaluating",
    "first_tensor",
    "fold_weights",
    "make_channels_first",
    "map_tensors",
    "masked",
    "modes_kept",
    "output_tensors",
    "plain_tree",
    "remove",
    "removed_positions",
    "renumbered",
    "takes_channels_last",
    "tensors_of",
    "tensors_of_tree",
    "trace",
    "usual_modes",
    "vanished_layers",
]
