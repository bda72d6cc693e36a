"""Our policies beside those of other pruning libraries: same network, data, budget, recalibration and fine-tuning.

    OMP_NUM_THREADS=1 python benchmarks/peers.py run [--networks digits …] [--budgets 0.5 0.3 0.15] [--seeds 0 1 2]
        [--methods amcsearch:uniform torch-pruning:taylor …] [--evaluations 40]
    python benchmarks/peers.py report

The peers are Torch-Pruning (``pip install torch-pruning``) and FastNAS of NVIDIA ModelOpt (``pip install
nvidia-modelopt``), each imported when its first row is run. The script needs a checkout and ``amcsearch[test]``.

- A seed changes the data split, the training and the search. Every method gets the same trained network.
- The budget is a share of the dense network's MACs, which ``torch.utils.flop_counter`` counts for every result.
  Torch-Pruning takes a ratio: it is bisected to the largest network within the budget. FastNAS takes the limit.
- ``pruned`` is the metric on the test split after batch norms took their statistics from the calibration split, of the
  peers' networks as of ours. ``tuned`` follows the same short fine-tuning with the dense network as teacher.
- Data that a method may read: the calibration split, and for FastNAS' score and our reward the search split.

``run`` appends to ``benchmarks/peers.csv`` and leaves out what stands there. ``report`` prints means and standard
deviations over seeds.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from defaults import Remembering, Silent, append, best_of, searched, stored
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from amcsearch.config.loading import load
from amcsearch.graph import Batches
from amcsearch.jobs.device import load_device
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.workload import judged_batches
from amcsearch.recovery import recalibrate_batch_norm
from amcsearch.training.loop import evaluate

CONFIGS = Path(__file__).parents[1] / "configs/searches"
CSV = Path(__file__).with_suffix(".csv")
NETWORKS = ("digits", "digits-mobilenetv2", "digits-vgg")
COMMON = (
    "device.table=null",
    "device.channel_multiple=1",
    "search.max_pruning_ratio=0.95",
    "selection={selector: obc}",
)
TRIES = 12  # of the bisection of a ratio
Search = Callable[["Case"], nn.Module]


@dataclass(frozen=True)
class Case:
    """What a method is given: the job of a dense network, and the most MACs that its result may have."""

    network: str
    job: Job
    limit: int
    evaluations: int
    method: str

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


def of_amcsearch(case: Case) -> nn.Module:
    """The default selection ``obc`` with one of our agents."""
    limited = load(CONFIGS / f"{case.network}.yaml", [*COMMON, f"budget={{macs: {case.limit}}}"])
    job = replace(case.job, device=load_device(limited, case.job.workload, limited.limits))
    agent = case.method.partition(":")[2]
    trials = searched(job, Remembering(job.evaluator, {}), agent, "obc", case.evaluations)
    return job.evaluator.pruned(best_of(trials).policy)


def scored(case: Case, kind: str, importance: Any) -> tuple[nn.Module, Any]:
    """A copy of the dense network with the gradients that an importance of Torch-Pruning reads, and the importance."""
    model = case.dense()
    if kind == "taylor":
        for inputs, targets in case.pairs("calibration"):
            F.cross_entropy(model(inputs), targets).backward()
    if kind == "hessian":
        for inputs, targets in case.pairs("calibration"):
            for loss in F.cross_entropy(model(inputs), targets, reduction="none"):
                model.zero_grad()
                loss.backward(retain_graph=True)
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
        ).step()
        return model

    low, high, best = 0.0, 0.95, None
    for _ in range(TRIES):
        ratio = (low + high) / 2
        model = pruned(ratio)
        if macs_of(model, case.example) <= case.limit:
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
        constraints={"flops": 2 * case.limit},
        dummy_input=case.example,
        config={
            "data_loader": list(case.pairs("calibration")),
            "score_func": lambda candidate: case.metric(candidate, "search"),
            "verbose": False,
        },
    )
    return model


METHODS: dict[str, Search] = {
    **{f"amcsearch:{agent}": of_amcsearch for agent in ("uniform", "random", "ddpg", "ladder")},
    **{
        f"torch-pruning:{kind}": of_torch_pruning
        for kind in ("l2-uniform", "l2-global", "taylor", "bn-scale", "hessian")
    },
    **{f"modelopt:fastnas-{size}": of_modelopt for size in (32, 8)},
}
FIELDS = ("network", "seed", "budget", "method", "macs", "dense", "pruned", "tuned", "seconds", "failed")


def row_of(case: Case, epochs: int) -> dict[str, float | str]:
    """Prune by one method, and judge the result as every other."""
    begun = time.perf_counter()
    try:
        model = METHODS[case.method](case)
    except Exception as error:  # a peer's failure is a result
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    seconds, job = time.perf_counter() - begun, case.job
    share = macs_of(model, case.example) / macs_of(job.workload.model, case.example)
    recalibrate_batch_norm(model, case.batches("calibration"))
    pruned = case.metric(model, "test")
    finetune = job.config.recovery.finetune
    assert finetune is not None
    short = finetune.model_copy(update={"epochs": epochs})
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(job.config, short, job.workload, model, Silent(), given=job.given, folder=Path(folder))
    tuned = case.metric(model, "test")
    return {"macs": share, "pruned": pruned, "tuned": tuned, "seconds": round(seconds, 1)}


def rows_of(
    network: str, seed: int, options: argparse.Namespace, done: set[tuple[str, ...]]
) -> Iterator[dict[str, float | str]]:
    """Run what is not done of one network and seed: every budget and method."""
    keys = [(network, str(seed), str(b), method) for b in options.budgets for method in options.methods]
    left = [key for key in keys if key not in done]
    if not left:
        return
    settings = [*COMMON, f"seed={seed}", f"data.kwargs.seed={seed}", "budget={macs: 0.5x}"]
    config = load(CONFIGS / f"{network}.yaml", settings)
    job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
    dense = evaluate(job.workload.model, judged_batches(config, job.workload, "test"), job.workload.task)[1]
    macs = macs_of(job.workload.model, job.workload.example.chosen([0]).args[0])
    for key in left:
        case = Case(network, job, int(float(key[2]) * macs), options.evaluations, key[3])
        yield {**dict(zip(FIELDS, key, strict=False)), "dense": dense, **row_of(case, options.epochs)}


def run(options: argparse.Namespace) -> None:
    """Append to the table what it lacks."""
    done = {tuple(row[field] for field in FIELDS[:4]) for row in stored(CSV)}
    pairs = [(network, seed) for seed in options.seeds for network in options.networks]
    append(CSV, FIELDS, (row for network, seed in pairs for row in rows_of(network, seed, options, done)))


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
        print("| method | seeds | " + " | ".join(f"{b}x: MACs | pruned | tuned | seconds" for b in budgets) + " |")
        print("|---|---|" + "---|---|---|---|" * len(budgets))
        for method in METHODS:
            cells, seeds = [], 0
            for budget in budgets:
                kept = [row for row in rows[network, budget, method] if not row["failed"]]
                seeds = max(seeds, len(kept))
                if not kept:
                    cells += ["–"] * 4
                    continue
                macs = statistics.fmean(float(row["macs"]) for row in kept)
                seconds = statistics.fmean(float(row["seconds"]) for row in kept)
                cells += [f"{macs:.3f}", spread(kept, "pruned"), spread(kept, "tuned"), f"{seconds:.0f}"]
            print(f"| `{method}` | {seeds} | {' | '.join(cells)} |")


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3, 0.15])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--evaluations", type=int, default=40, help="of our agents")
    parser.add_argument("--epochs", type=int, default=2, help="of the fine-tuning")
    options = parser.parse_args()
    {"run": run, "report": report}[options.part](options)


if __name__ == "__main__":
    main()
