"""The folder of a run on disk, and the typed documents in it."""

from amcsearch.runs.documents import Document, StoredDocument
from amcsearch.runs.files import make_folder, read_text, replacing, writing
from amcsearch.runs.folder import ConfigFile, RunFolder
from amcsearch.runs.goals import (
    FailedRung,
    Goal,
    KeepAccuracyGoal,
    PairedChange,
    PolicyGoal,
    RoundSummary,
    TargetGoal,
)
from amcsearch.runs.rows import TRIAL_COLUMNS, read_trials, trial_rows
from amcsearch.runs.sparsify_summary import Density, SparseBlock, SparsifySummary, SparsityTarget
from amcsearch.runs.summary import (
    BudgetEntry,
    DeliveredAccuracy,
    FinalistSummary,
    GroupWidth,
    Interval,
    ModelBlock,
    SkippedLayer,
    Summary,
    TableErrors,
    TableSummary,
    with_total,
)

__all__ = [
    "TRIAL_COLUMNS",
    "BudgetEntry",
    "ConfigFile",
    "DeliveredAccuracy",
    "Density",
    "Document",
    "FailedRung",
    "FinalistSummary",
    "Goal",
    "GroupWidth",
    "Interval",
    "KeepAccuracyGoal",
    "ModelBlock",
    "PairedChange",
    "PolicyGoal",
    "RoundSummary",
    "RunFolder",
    "SkippedLayer",
    "SparseBlock",
    "SparsifySummary",
    "SparsityTarget",
    "StoredDocument",
    "Summary",
    "TableErrors",
    "TableSummary",
    "TargetGoal",
    "make_folder",
    "read_text",
    "read_trials",
    "replacing",
    "trial_rows",
    "with_total",
    "writing",
]
