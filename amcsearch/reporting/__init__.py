"""Pictures and the page that show what a run found and why to trust it."""

from amcsearch.reporting.figures import comparison_picture
from amcsearch.reporting.fronts import front_page
from amcsearch.reporting.goals import goal_lines
from amcsearch.reporting.latency_curves import LayerCurve, layer_curves, write_latency_curves
from amcsearch.reporting.layer_charts import check_charts, write_additivity, write_curves, write_energy
from amcsearch.reporting.page import render
from amcsearch.reporting.progress import ProgressBar
from amcsearch.reporting.table_comparison import write_table_comparison
from amcsearch.reporting.words import axis
from amcsearch.reporting.words import cost as cost_text

__all__ = [
    "LayerCurve",
    "ProgressBar",
    "axis",
    "check_charts",
    "comparison_picture",
    "cost_text",
    "front_page",
    "goal_lines",
    "layer_curves",
    "render",
    "write_additivity",
    "write_curves",
    "write_energy",
    "write_latency_curves",
    "write_table_comparison",
]
