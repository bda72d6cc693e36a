"""The folder of a run on disk."""

from amcsearch.runs.files import replacing
from amcsearch.runs.folder import TRIAL_COLUMNS, RunFolder

__all__ = ["TRIAL_COLUMNS", "RunFolder", "replacing"]
