"""The folder of a run on disk."""

from amcsearch.runs.files import make_folder, read_text, replacing, writing
from amcsearch.runs.folder import RunFolder
from amcsearch.runs.rows import TRIAL_COLUMNS, read_trials, trial_rows

__all__ = [
    "TRIAL_COLUMNS",
    "RunFolder",
    "make_folder",
    "read_text",
    "read_trials",
    "replacing",
    "trial_rows",
    "writing",
]
