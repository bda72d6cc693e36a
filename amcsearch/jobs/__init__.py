"""TODO face."""

from amcsearch.jobs.energy import energy_report
from amcsearch.jobs.search import plan, prune, search
from amcsearch.jobs.sensitivity import write_sensitivity
from amcsearch.jobs.sparsify.sparsify import sparsify
from amcsearch.jobs.tables import VARIANTS, build_table, check_table, make_kit, measure_table

__all__ = [
    "VARIANTS",
    "build_table",
    "check_table",
    "energy_report",
    "make_kit",
    "measure_table",
    "plan",
    "prune",
    "search",
    "sparsify",
    "write_sensitivity",
]
