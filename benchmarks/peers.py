"""Our policies beside those of other pruning libraries: same network, data, budget, recalibration and fine-tuning.

    OMP_NUM_THREADS=1 python benchmarks/peers.py run [--networks digits …] [--budgets "macs 0.3x" "latency_ms 0.5x" …]
        [--seeds 0 1 2] [--methods amcsearch:uniform torch-pruning:taylor …] [--evaluations 24]
    python benchmarks/peers.py report

The peers are Torch-Pruning (``pip install torch-pruning``), FastNAS of NVIDIA ModelOpt (``pip install nvidia-modelopt
'torchprofile<0.1'``) and AIMET's channel pruning (``pip install aimet-torch torchvision transformers``), each imported
when its first row is run. The script needs a checkout and ``amcsearch[test]``.

- A seed changes the data split, the training and the search. Every method gets the same trained network.
- The budget is a share of the dense network's MACs, which ``torch.utils.flop_counter`` counts for every result, or of
  its latency, which the shipped table predicts for every result from the shapes of its layers. Torch-Pruning takes a
  ratio: it is bisected to the largest network within the budget. It is told the heads of attentions, and removes whole
  ones. FastNAS and AIMET take MACs alone, and have no latency rows.
- Ours select and refit by ``obc``, whatever the agent: ``one-ratio`` is the largest policy of one ratio for all
  groups, ``uniform`` goes on near it, ``random`` draws. ``ddpg``, the default, and ``ladder`` begin with the exact
  allocation (``search.start: exact``).
- ``pruned`` is the metric on the test split after batch norms took their statistics from the calibration split, of the
  peers' networks as of ours. ``tuned`` follows the same short fine-tuning with the dense network as teacher.
- Data that a method may read: the calibration split, and for FastNAS' score and our reward the search split.

``run`` appends to ``benchmarks/peers.csv`` and leaves out what stands there. ``report`` prints means and standard
deviations over seeds, and what the default is above one ratio, ``uniform``, ``random`` and the best peer by.
``cpu_s`` are seconds of CPU time until a network is pruned.
"""

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from coverage_networks import load_libraries
from defaults import Remembering, Silent, append, best_of, searched, stored
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from amcsearch.config.loading import load
from amcsearch.core import LayerKind, LayerSpec
from amcsearch.graph import Batches
from amcsearch.jobs.device import Device, load_device
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.workload import judged_batches
from amcsearch.recovery import recalibrate_batch_norm
from amcsearch.training.loop import evaluate
from amcsearch.training.models.transformer import Attention

CONFIGS = Path(__file__).parents[1] / "configs/searches"
CSV = Path(__file__).with_suffix(".csv")
NETWORKS = ("digits", "digits-mobilenetv2", "digits-vgg")
TABLES = {"macs": "null", "latency_ms": "x86_epyc_avx512"}  # by cost; the same on every machine
BUDGETS = ("macs 0.15x", "macs 0.3x", "macs 0.5x", "latency_ms 0.5x")  # in the order of the rows
COMMON = (
    "device.channel_multiple=1",
    "search.max_pruning_ratio=0.95",
    "selection={selector: obc}",
)
STEPS = {"digits": ("recovery.finetune.learning_rate=0.05",)}  # larger than ours need, for the peers' networks
TRIES = 12  # of the bisection of a ratio
Search = Callable[["Case"], nn.Module]


@dataclass(frozen=True)
class Case:
    """What a method is given: the job of a dense network, and the most that its result may cost.

    ``budget`` is a cost and a share of the dense network's, ``macs 0.3x``.
    """

    network: str
    job: Job
    budget: str
    evaluations: int
    method: str

    @property
    def limit(self) -> float:
        """The share."""
        return float(self.budget.split()[1].removesuffix("x"))

    @cached_property
    def device(self) -> Device:
        """The device with the budget."""
        cost, share = self.budget.split()
        settings = [*COMMON, f"device.table={TABLES[cost]}", f"budget={{{cost}: {share}}}"]
        config = load(CONFIGS / f"{self.network}.yaml", settings)
        return load_device(config, self.job.workload, config.limits)

    def share(self, model: nn.Module) -> float:
        """What a network costs, as a share of the dense one."""
        if self.budget.startswith("macs"):
            return macs_of(model, self.example) / macs_of(self.job.workload.model, self.example)
        table, dense = self.device.table, self.job.workload.trace.network
        assert table is not None
        layers = [resized(layer, model) for layer in dense.layers]
        return table.predict(layers) / table.predict(dense.layers)

    def dense(self) -> nn.Module:
        """A copy to prune, in evaluation mode, whose parameters take gradients."""
        return copy.deepcopy(self.job.workload.model).eval().requires_grad_(True)

    @property
    def example(self) -> Tensor:
        """One sample."""
        return self.job.workload.example.chosen([0]).args[0]

    def batches(self, split: str) -> Batches:
        """Those of ``calibration``, ``search`` or ``test``."""
        return judged_batches(self.job.config, self.job.workload, split)

    def pairs(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The same as inputs and class ids."""
        return ((batch.args[0], batch.targets) for batch in self.batches(split))

    def metric(self, model: nn.Module, split: str) -> float:
        """The task's metric on a split."""
        return evaluate(model.eval(), self.batches(split), self.job.workload.task)[1]


def macs_of(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one sample, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example)
    return counter.get_total_flops() // 2


def resized(layer: LayerSpec, model: nn.Module) -> LayerSpec:
    """A layer of the dense network with the widths that it has in a pruned one."""
    if layer.kind is LayerKind.PARAMETER:
        return replace(layer, out_channels=model.get_parameter(layer.name).shape[-1])
    if layer.kind is LayerKind.ATTENTION:  # named as a function that its module calls
        attention = model.get_submodule(layer.name.rpartition(".")[0])
        assert isinstance(attention, Attention)
        width = attention.v.out_features
        heads = width // attention.head_width
        return replace(layer, in_channels=width, out_channels=width, conv_groups=heads)
    module = model.get_submodule(layer.name)
    if isinstance(module, nn.Conv2d):
        widths = module.in_channels, module.out_channels
        return replace(layer, in_channels=widths[0], out_channels=widths[1], conv_groups=module.groups)
    if isinstance(module, nn.Linear):
        return replace(layer, in_channels=module.in_features, out_channels=module.out_features)
    if isinstance(module, nn.LayerNorm):
        return replace(layer, in_channels=module.normalized_shape[0], out_channels=module.normalized_shape[0])
    return layer


def of_amcsearch(case: Case) -> nn.Module:
    """The default selection ``obc`` with one of our agents."""
    job, agent = replace(case.job, device=case.device), case.method.partition(":")[2]
    if agent == "one-ratio":
        return job.evaluator.pruned(job.workload.trace.network.policy(case.device.feasible.largest_uniform()))
    trials = searched(job, Remembering(job.evaluator, {}), agent, "obc", case.evaluations)
    return job.evaluator.pruned(best_of(trials).policy)


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """The number of heads of every layer that Torch-Pruning may cut by whole heads alone."""
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    return {layer: module.num_heads for module in attentions for layer in (module.q, module.k, module.v)}


def scored(case: Case, kind: str, importance: Any) -> tuple[nn.Module, Any]:
    """A copy of the dense network with the gradients that an importance of Torch-Pruning reads, and the importance."""
    model = case.dense()
    if kind == "taylor":
        for inputs, targets in case.pairs("calibration"):
            F.cross_entropy(model(inputs), targets).backward()
    if kind == "hessian":
        for inputs, targets in case.pairs("calibration"):
            for sample, target in zip(inputs.split(1), targets.split(1), strict=True):  # in evaluation mode: the same
                model.zero_grad()
                F.cross_entropy(model(sample), target).backward()
                importance.accumulate_grad(model)
    return model, importance


def of_torch_pruning(case: Case) -> nn.Module:
    """The largest network within the budget that one ratio, or one ranking of all channels, gives."""
    import torch_pruning as tp

    kinds = {
        "l2-uniform": (partial(tp.importance.GroupMagnitudeImportance, p=2), False),
        "l2-global": (partial(tp.importance.GroupMagnitudeImportance, p=2), True),
        "bn-scale": (tp.importance.BNScaleImportance, True),
        "taylor": (tp.importance.GroupTaylorImportance, True),
        "hessian": (tp.importance.GroupHessianImportance, True),
    }
    kind = case.method.partition(":")[2]
    importance_of, everywhere = kinds[kind]
    dense = scored(case, kind, importance_of())

    def pruned(ratio: float) -> nn.Module:
        model, importance = copy.deepcopy(dense)
        for original, copied in zip(dense[0].parameters(), model.parameters(), strict=True):
            copied.grad = original.grad
        tp.pruner.BasePruner(
            model,
            case.example,
            importance=importance,
            global_pruning=everywhere,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=[[module for module in model.modules() if isinstance(module, nn.Linear)][-1]],
            num_heads=heads_of(model),
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
        ).step()
        return model

    low, high, best = 0.0, 0.95, None
    for _ in range(TRIES):
        ratio = (low + high) / 2
        model = pruned(ratio)
        if case.share(model) <= case.limit:
            high, best = ratio, model
        else:
            low = ratio
    if best is None:
        raise ValueError("no ratio up to 0.95 meets the budget")
    return best


def of_modelopt(case: Case) -> nn.Module:
    """FastNAS, scored on the search split, with multiples of 32 channels as by default, or of 8."""
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.fastnas import FastNASConfig

    size = int(case.method.rpartition("-")[2])
    divisors = {"channel_divisor": size, "feature_divisor": size}
    settings = {
        kind: {"*": {key: divisors.get(key, value) for key, value in rules["*"].items()}}
        for kind, rules in FastNASConfig().model_dump().items()
        if rules and "*" in rules
    }
    model, _ = mtp.prune(
        case.dense(),
        mode=[("fastnas", settings)],
        constraints={"flops": 2 * int(case.limit * macs_of(case.job.workload.model, case.example))},
        dummy_input=case.example,
        config={
            "data_loader": list(case.pairs("calibration")),
            "score_func": lambda candidate: case.metric(candidate, "search"),
            "verbose": False,
        },
    )
    return model


def of_aimet(case: Case) -> nn.Module:
    """AIMET's channel pruning with greedy ratios: ten candidates a layer, scored on the search split."""
    load_libraries()  # it imports torchvision
    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import ChannelPruningParameters
    from aimet_torch.model_preparer import prepare_model

    model, calibration = prepare_model(case.dense()), case.job.workload.splits.calibration
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))  # it reads the image
    greedy = GreedySelectionParameters(Decimal(str(case.limit)), num_comp_ratio_candidates=10)
    parameters = ChannelPruningParameters(
        data_loader=DataLoader(calibration, batch_size=64),
        num_reconstruction_samples=len(calibration),
        allow_custom_downsample_ops=True,
        mode=ChannelPruningParameters.Mode.auto,
        params=ChannelPruningParameters.AutoModeParams(greedy, modules_to_ignore=[first]),
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it writes into the current folder
        pruned, _ = ModelCompressor.compress_model(
            model,
            eval_callback=lambda candidate, *_, **__: case.metric(candidate, "search"),
            eval_iterations=None,
            input_shape=tuple(case.example.shape),
            compress_scheme=CompressionScheme.channel_pruning,
            cost_metric=CostMetric.mac,
            parameters=parameters,
        )
    return pruned


METHODS: dict[str, Search] = {
    **{f"amcsearch:{agent}": of_amcsearch for agent in ("one-ratio", "uniform", "random", "ddpg", "ladder")},
    **{
        f"torch-pruning:{kind}": of_torch_pruning
        for kind in ("l2-uniform", "l2-global", "taylor", "bn-scale", "hessian")
    },
    **{f"modelopt:fastnas-{size}": of_modelopt for size in (32, 8)},
    "aimet:channel-pruning": of_aimet,
}
DEFAULT = "amcsearch:ddpg"
OF_MACS = ("modelopt", "aimet")  # peers that take no other budget
FIELDS = ("network", "seed", "budget", "method", "share", "dense", "pruned", "tuned", "cpu_s", "failed")


def row_of(case: Case, epochs: int) -> dict[str, float | str]:
    """Prune by one method, and judge the result as every other."""
    begun = time.process_time()
    try:
        model = METHODS[case.method](case)
    except Exception as error:  # a peer's failure is a result
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    seconds, job, share = time.process_time() - begun, case.job, case.share(model)
    recalibrate_batch_norm(model, case.batches("calibration"))
    pruned = case.metric(model, "test")
    finetune = job.config.recovery.finetune
    assert finetune is not None
    short = finetune.model_copy(update={"epochs": epochs})
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(job.config, short, job.workload, model, Silent(), given=job.given, folder=Path(folder))
    tuned = case.metric(model, "test")
    return {"share": round(share, 4), "pruned": pruned, "tuned": tuned, "cpu_s": round(seconds, 1)}


@cache
def job_of(network: str, seed: int) -> tuple[Job, float]:
    """Train the dense network of a seed, rank its channels, and judge it on the test split."""
    settings = [*COMMON, *STEPS.get(network, ()), f"seed={seed}", f"data.kwargs.seed={seed}"]
    settings += ["budget={macs: 0.5x}", "device.table=null"]
    config = load(CONFIGS / f"{network}.yaml", settings)
    job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
    return job, evaluate(job.workload.model, judged_batches(config, job.workload, "test"), job.workload.task)[1]


def rows_of(options: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, float | str]]:
    """Run what is not done: a budget after another, of each the networks and seeds, of these every method."""
    for budget, network, seed in product(options.budgets, options.networks, options.seeds):
        for method in options.methods:
            key = (network, str(seed), budget, method)
            if key not in done and (budget.startswith("macs") or not method.startswith(OF_MACS)):
                job, dense = job_of(network, seed)
                case = Case(network, job, budget, options.evaluations, method)
                yield {**dict(zip(FIELDS, key, strict=False)), "dense": dense, **row_of(case, options.epochs)}


def run(options: argparse.Namespace) -> None:
    """Append to the table what it lacks."""
    done = {tuple(row[field] for field in FIELDS[:4]) for row in stored(CSV)}
    append(CSV, FIELDS, rows_of(options, done))


def spread(rows: list[dict[str, str]], field: str) -> str:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * float(row[field]) for row in rows]
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def report(options: argparse.Namespace) -> None:
    """Print a table a network, percent of the test split."""
    rows = defaultdict(list)
    for row in stored(CSV):
        rows[row["network"], row["budget"], row["method"]].append(row)
    for network in dict.fromkeys(key[0] for key in rows):
        budgets = [budget for budget in map(str, options.budgets) if any(key[:2] == (network, budget) for key in rows)]
        print(f"\n{network}\n")
        print("| method | seeds | " + " | ".join(f"{b}: share | pruned | tuned | CPU s" for b in budgets) + " |")
        print("|---|---|" + "---|---|---|---|" * len(budgets))
        for method in METHODS:
            kept = [[row for row in rows[network, budget, method] if not row["failed"]] for budget in budgets]
            seeds = max(map(len, kept))
            if seeds:
                print(f"| `{method}` | {seeds} | {' | '.join(cells_of(each, seeds) for each in kept)} |")
    print_differences(options.budgets)


def cells_of(rows: list[dict[str, str]], seeds: int) -> str:
    """Columns of a method within a budget; the number of seeds beside the share where there are fewer."""
    if not rows:
        return " | ".join("–" * 4)
    share = statistics.fmean(float(row["share"]) for row in rows)
    fewer = f" ({len(rows)})" if len(rows) < seeds else ""
    seconds = statistics.fmean(float(row["cpu_s"]) for row in rows)
    return f"{share:.3f}{fewer} | {spread(rows, 'pruned')} | {spread(rows, 'tuned')} | {seconds:.0f}"


def print_differences(budgets: Sequence[str]) -> None:
    """Print what the default is above others by, in points, seed by seed; the best peer is the best of each seed."""
    judged: dict[tuple[str, str], dict[str, dict[str, dict[str, str]]]] = defaultdict(lambda: defaultdict(dict))
    for row in stored(CSV):
        if not row["failed"]:
            judged[row["network"], row["budget"]][row["seed"]][row["method"]] = row
    print("\n| network | budget | the default above | seeds | pruned, points | tuned, points |")
    print("|---|---|---|---|---|---|")
    for (network, budget), by_seed in judged.items():
        seeds = [methods for methods in by_seed.values() if DEFAULT in methods]
        for name, others in {
            **{f"`{name}`": [name] for name in ("amcsearch:one-ratio", "amcsearch:uniform", "amcsearch:random")},
            "the best peer": [name for name in METHODS if not name.startswith("amcsearch")],
        }.items():
            pairs = [(methods[DEFAULT], [methods[m] for m in others if m in methods]) for methods in seeds]
            pairs = [(ours, theirs) for ours, theirs in pairs if theirs]
            if pairs and budget in budgets:
                cells = [
                    signed([100 * (float(ours[f]) - max(float(row[f]) for row in theirs)) for ours, theirs in pairs])
                    for f in ("pruned", "tuned")
                ]
                print(f"| {network} | {budget} | {name} | {len(pairs)} | {' | '.join(cells)} |")


def signed(values: list[float]) -> str:
    """Mean with its sign, and standard deviation over seeds."""
    return f"{statistics.fmean(values):+.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--evaluations", type=int, default=24, help="of our agents")
    parser.add_argument("--epochs", type=int, default=2, help="of the fine-tuning")
    options = parser.parse_args()
    {"run": run, "report": report}[options.part](options)


if __name__ == "__main__":
    main()
