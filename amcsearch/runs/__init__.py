"""The folder of a run on disk."""

from amcsearch.runs.files import make_folder, replacing
from amcsearch.runs.folder import RunFolder
from amcsearch.runs.rows import TRIAL_COLUMNS, trial_rows

__all__ = ["TRIAL_COLUMNS", "RunFolder", "make_folder", "replacing", "trial_rows"]
