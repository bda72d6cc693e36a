"""The verbs as functions: objects in, typed results out."""

from amcsearch.api.measurements import energy, measure_latency_table, sensitivity, verify
from amcsearch.api.searches import compare, front, load, make_env, prune, search, sparsify

__all__ = [
    "compare",
    "energy",
    "front",
    "load",
    "make_env",
    "measure_latency_table",
    "prune",
    "search",
    "sensitivity",
    "sparsify",
    "verify",
]
