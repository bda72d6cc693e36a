"""The only room that knows YAML and pydantic: from a file of words to valid values."""

from amcsearch.config.devices import read_device, read_latency_table, write_latency_table
from amcsearch.config.factories import build, call_factory, import_factory, pick
from amcsearch.config.loading import check_priced, config_hash, dump, from_mapping, json_schema, load
from amcsearch.config.lookup import DEVICES, TABLES, find, listed, writable
from amcsearch.config.schema import (
    Config,
    DataConfig,
    DeviceConfig,
    Distillation,
    EvaluationConfig,
    FinetuneConfig,
    ModelConfig,
    PruneConfig,
    RecipeConfig,
    RecoveryConfig,
    RewardConfig,
    SearchConfig,
    SelectionConfig,
    SparsifyConfig,
    SplitsConfig,
)

__all__ = [
    "DEVICES",
    "TABLES",
    "Config",
    "DataConfig",
    "DeviceConfig",
    "Distillation",
    "EvaluationConfig",
    "FinetuneConfig",
    "ModelConfig",
    "PruneConfig",
    "RecipeConfig",
    "RecoveryConfig",
    "RewardConfig",
    "SearchConfig",
    "SelectionConfig",
    "SparsifyConfig",
    "SplitsConfig",
    "build",
    "call_factory",
    "check_priced",
    "config_hash",
    "dump",
    "find",
    "from_mapping",
    "import_factory",
    "json_schema",
    "listed",
    "load",
    "pick",
    "read_device",
    "read_latency_table",
    "writable",
    "write_latency_table",
]
