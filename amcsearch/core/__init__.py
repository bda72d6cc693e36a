"""Nouns shared by every floor: standard library and numpy only."""

from amcsearch.core.cost import COST_NAMES, FIRST_COSTS, Cost
from amcsearch.core.counting import alike, counted, digits
from amcsearch.core.database import check_encoding, without_passwords
from amcsearch.core.errors import (
    OUT,
    RESUME,
    BadInputError,
    DeliveryError,
    DeviceAwayError,
    DivergedError,
    InfeasibleBudgetError,
)
from amcsearch.core.execution import Execution, LiveTensor, MomentBytes, WidthSum
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.interrupts import Interrupted, check_interrupt, interruptible
from amcsearch.core.layer import LayerKind, LayerSpec, MapOp, MapStep, Stored
from amcsearch.core.limit import SHARE, SIZE, Limit, is_size, read_limit
from amcsearch.core.memory import give_back_freed_memory, keep_freed_memory, memory_kept
from amcsearch.core.metric import ACCURACY, METRICS, Metric
from amcsearch.core.network import NetworkSpec
from amcsearch.core.order import at_worst
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.core.reading import (
    DEEPEST,
    MIB,
    check_csv,
    check_depth,
    check_file,
    decoded,
    open_file,
    parse_json,
    read_bytes,
    read_text,
)
from amcsearch.core.trial import Evaluation, Incumbent, Trial, TrialState
from amcsearch.core.user_code import (
    KEEPERS,
    CallersOwn,
    UserCode,
    described,
    guarded_job,
    printable,
    settings_kept,
)

__all__ = [
    "ACCURACY",
    "COST_NAMES",
    "DEEPEST",
    "FIRST_COSTS",
    "KEEPERS",
    "METRICS",
    "MIB",
    "OUT",
    "RESUME",
    "SHARE",
    "SIZE",
    "BadInputError",
    "CallersOwn",
    "ChannelGroup",
    "Cost",
    "Coupling",
    "DeliveryError",
    "DeviceAwayError",
    "DivergedError",
    "Evaluation",
    "Execution",
    "Incumbent",
    "InfeasibleBudgetError",
    "Interrupted",
    "LayerKind",
    "LayerSpec",
    "Limit",
    "LiveTensor",
    "MapOp",
    "MapStep",
    "Metric",
    "MomentBytes",
    "NetworkSpec",
    "PolicySpace",
    "PruningPolicy",
    "Side",
    "Stored",
    "Trial",
    "TrialState",
    "UserCode",
    "WidthSum",
    "alike",
    "at_worst",
    "check_csv",
    "check_depth",
    "check_encoding",
    "check_file",
    "check_interrupt",
    "counted",
    "decoded",
    "described",
    "digits",
    "give_back_freed_memory",
    "guarded_job",
    "interruptible",
    "is_size",
    "keep_freed_memory",
    "memory_kept",
    "open_file",
    "parse_json",
    "printable",
    "read_bytes",
    "read_limit",
    "read_text",
    "settings_kept",
    "without_passwords",
]
