"""Latency tables from hardware: what to measure, the kit that measures it, the table built from its results."""

from amcsearch.measure.agents.client import AgentClient, WorkConnection
from amcsearch.measure.agents.routes import DeviceAnswer, DeviceRequest, RequestRefusedError, device_request, encoded
from amcsearch.measure.agents.server import DeviceServer
from amcsearch.measure.agents.work_list import WorkList
from amcsearch.measure.build.maintenance import anchored, merged, prediction_errors, with_accuracy
from amcsearch.measure.build.measured import (
    MeasuredNetwork,
    MeasuredVariant,
    joined_variants,
    measured_variants,
    slowed_models,
)
from amcsearch.measure.build.table_builder import table_from_results, table_of
from amcsearch.measure.kit.kit import (
    REFERENCE,
    KitPlan,
    KitRun,
    check_kit_file,
    device_plan,
    kit_plan,
    measure_here,
    write_kit,
)
from amcsearch.measure.kit.kit_results import KitResult, read_results
from amcsearch.measure.plan.measurement_plan import (
    MeasuredSubject,
    held_out_count,
    measurement_plan,
)
from amcsearch.measure.plan.paired_plan import PairedSetting, check_speed, paired_latencies, paired_plan
from amcsearch.measure.plan.variants import random_kept

__all__ = [
    "REFERENCE",
    "AgentClient",
    "DeviceAnswer",
    "DeviceRequest",
    "DeviceServer",
    "KitPlan",
    "KitResult",
    "KitRun",
    "MeasuredNetwork",
    "MeasuredSubject",
    "MeasuredVariant",
    "PairedSetting",
    "RequestRefusedError",
    "WorkConnection",
    "WorkList",
    "anchored",
    "check_kit_file",
    "check_speed",
    "device_plan",
    "device_request",
    "encoded",
    "held_out_count",
    "joined_variants",
    "kit_plan",
    "measure_here",
    "measured_variants",
    "measurement_plan",
    "merged",
    "paired_latencies",
    "paired_plan",
    "prediction_errors",
    "random_kept",
    "read_results",
    "slowed_models",
    "table_from_results",
    "table_of",
    "with_accuracy",
    "write_kit",
]
