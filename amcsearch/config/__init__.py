"""The only room that knows YAML and pydantic: from a file of words to valid values."""

from amcsearch.config.devices import read_device, read_latency_table, write_latency_table
from amcsearch.config.factories import build, call_factory, import_factory, pick
from amcsearch.config.loading import config_hash, dump, from_mapping, json_schema, load
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
    check_priced,
)

__all__ = [
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
    "from_mapping",
    "import_factory",
    "json_schema",
    "load",
    "pick",
    "read_device",
    "read_latency_table",
    "write_latency_table",
]
