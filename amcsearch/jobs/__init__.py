"""What a user asks for: one function a verb, a typed request in and a typed result out."""

from amcsearch.jobs.compare import Comparison, compare
from amcsearch.jobs.energy import EnergyReport, LayerReport, energy_report
from amcsearch.jobs.front import front
from amcsearch.jobs.front_devices import AskedDevice
from amcsearch.jobs.loading import Source
from amcsearch.jobs.measuring import agents_by
from amcsearch.jobs.observer import Observer, watcher
from amcsearch.jobs.plan import SearchPlan, plan
from amcsearch.jobs.prune.prune import prune
from amcsearch.jobs.request import Settings, default_folder, extended, given_path, given_policy, in_folder, make_request
from amcsearch.jobs.result import RunResult, SearchResult, SparsifyResult, load
from amcsearch.jobs.search import make_env, search
from amcsearch.jobs.sensitivity import Sensitivity, sensitivity
from amcsearch.jobs.sparsify.sparsify import sparsify
from amcsearch.jobs.table_check import TableCheck, check_table
from amcsearch.jobs.table_comparison import compare_tables
from amcsearch.jobs.table_files import build_into, check_into, learning_folder, measure_into
from amcsearch.jobs.tables import VARIANTS, make_kit, measure_table
from amcsearch.jobs.user_training import TrainingRequest, UserTraining
from amcsearch.jobs.verify import VerifyKit, verify, write_verify_kit
from amcsearch.jobs.workload import InMemory

__all__ = [
    "VARIANTS",
    "AskedDevice",
    "Comparison",
    "EnergyReport",
    "InMemory",
    "LayerReport",
    "Observer",
    "RunResult",
    "SearchPlan",
    "SearchResult",
    "Sensitivity",
    "Settings",
    "Source",
    "SparsifyResult",
    "TableCheck",
    "TrainingRequest",
    "UserTraining",
    "VerifyKit",
    "agents_by",
    "build_into",
    "check_into",
    "check_table",
    "compare",
    "compare_tables",
    "default_folder",
    "energy_report",
    "extended",
    "front",
    "given_path",
    "given_policy",
    "in_folder",
    "learning_folder",
    "load",
    "make_env",
    "make_kit",
    "make_request",
    "measure_into",
    "measure_table",
    "plan",
    "prune",
    "search",
    "sensitivity",
    "sparsify",
    "verify",
    "watcher",
    "write_verify_kit",
]
