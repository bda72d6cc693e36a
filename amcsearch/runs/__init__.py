"""The folder of a run on disk."""

from amcsearch.runs.files import replacing
from amcsearch.runs.folder import RunFolder
from amcsearch.runs.rows import TRIAL_COLUMNS, trial_rows

__all__ = ["TRIAL_COLUMNS", "RunFolder", "replacing", "trial_rows"]
