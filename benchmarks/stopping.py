"""What a search saves, and what it finds, where evaluations stop early (``search.stop_confidence``).

    OMP_NUM_THREADS=1 python benchmarks/stopping.py [CONFIG] [--agents ddpg random] [--seeds 0 1] [--set KEY=VALUE ...]

Without a configuration the network is the little one of ``benchmarks/ladder.py``. Each agent searches under each seed
with and without the key, in a storage of its own. Printed are the share of trials that stopped, of samples of the
search split that were not looked at, the seconds of evaluations, and the best metric.
"""

import argparse
import tempfile
from pathlib import Path

from ladder import Silent, little_job

from amcsearch.config.loading import load
from amcsearch.core import TrialState
from amcsearch.evaluation import SerialExecutor
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.search import made_agent, new_study, run_agent, search_evaluator
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.workload import CONFIGURED


def searched(job: Job, agent: str, seed: int) -> dict[str, float]:
    """Run one search and return what it spent and found."""
    observer = Silent()
    evaluator, stops = search_evaluator(job, observer)
    with tempfile.TemporaryDirectory() as folder:
        executor = SerialExecutor(evaluator)
        study = new_study(job, executor, agent, seed, Path(folder) / "study.db", observer, stops=stops)
        run_agent(job, study, made_agent(job.config, agent, {}, ("agent", "params")), observer)
    samples = evaluator.search.samples
    judged = [trial.evaluation.stopped_after or samples for trial in study.trials]
    assert study.best is not None
    return {
        "saved": 1.0 - sum(judged) / (samples * len(judged)),
        "stopped": sum(trial.state is TrialState.STOPPED for trial in study.trials) / len(judged),
        "seconds": sum(trial.evaluation.seconds for trial in study.trials),
        "best": study.best.evaluation.metric,
        "evaluations": len(judged),
    }


def main() -> None:
    """Search in both ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--agents", nargs="+", default=["ddpg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    if options.config is None:
        job = little_job(options.settings)
    else:
        config = load(options.config, options.settings)
        job = assemble(config, config.limits, Phases(Silent(), lambda _: None), CONFIGURED)
    config = job.config
    print("dense", job.dense.metric)
    print("| agent | seed | confidence | evaluations | stopped | samples saved | seconds evaluating | best |")
    for agent in options.agents:
        for seed in options.seeds:
            for confidence in (None, options.confidence):
                search = config.search.model_copy(update={"stop_confidence": confidence})
                each = Job(**{**vars(job), "config": config.model_copy(update={"search": search})})
                row = searched(each, agent, seed)
                print(
                    f"| {agent} | {seed} | {confidence or '–'} | {row['evaluations']} | {row['stopped']:.0%} "
                    f"| {row['saved']:.0%} | {row['seconds']:.1f} | {row['best']:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
