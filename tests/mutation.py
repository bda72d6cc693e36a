"""Change one operator, constant or argument of the package at a time and ask whether a test fails.

    python -m tests.mutation                          every mutant of MUTATED
    python -m tests.mutation core search/budget       of files whose path begins so
    python -m tests.mutation costs --sample 40        at most 40 of each file, the same ones every time
    python -m tests.mutation core --again             those that were not killed before

mutmut writes the mutants: every function of ``mutants/amcsearch`` holds its variants and calls the one that an
environment variable names. Here the tests are imported once; each mutant gets a process forked from this one, in which
the tests of its room that reach the changed function run until one fails, the quickest first. Examples of hypothesis
are the same in every run. A table of files closes the run; ``mutants/verdicts.txt`` holds every verdict and
``mutants/survived.diff`` what no test noticed. A mutant that runs into its limit of time is killed, too.
"""

import argparse
import ast
import difflib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import hypothesis
import pytest
from _pytest.runner import runtestprotocol
from mutmut.mutation import trampoline
from mutmut.mutation.file_mutation import mutate_file_contents

ROOT = Path(__file__).parents[1]
COPY = ROOT / "mutants"
# a file or folder of the package, and the tests that judge it
MUTATED = {
    "core": ("core", "graph/test_modes.py"),
    "search/budget.py": ("search/test_budget.py", "search/test_dominance.py"),
    "methods/ranking.py": ("methods/test_ranking.py", "methods/test_global_ranking.py", "methods/test_reduction.py"),
    "costs": ("costs",),
}
LEFT_OUT = (
    "test_a_fault_of_ours_passes_a_job_as_it_is",  # mutmut's frames in the traceback are not ours
    # seconds each, and every mutant that survives would wait for them
    "test_anything_is_read_or_refused",
    "test_largest_uniform_is_feasible",
    "test_no_random_walk_over_allowed_choices_ends_over_budget",
    "test_repair_is_feasible_deterministic_idempotent_and_wastes_no_step",
)
RECORD = COPY / "verdicts.txt"
KILLS = ("killed", "timeout")
EXIT = os._exit  # guards replace it while a job runs


class Mutation:
    """A plugin of pytest: in place of the loop over the tests, a loop over the mutants."""

    def __init__(self, mutants: list[str]) -> None:
        self.mutants = mutants

    def pytest_configure(self) -> None:
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # nobody reads the smallest example
        hypothesis.settings.register_profile("mutation", deadline=None, derandomize=True, database=None, phases=phases)
        hypothesis.settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = [item for item in session.items if item.name not in LEFT_OUT]
        reached = self._reached(items)
        for mutant in self.mutants:
            tests = reached.get(mutant.rpartition("__mutmut_")[0], {})
            chosen = sorted((item for item in items if item.nodeid in tests), key=lambda item: tests[item.nodeid])
            seconds = sum(tests.values())
            verdict = _judged(mutant, chosen, seconds) if chosen else "untested"
            with RECORD.open("a") as record:
                record.write(f"{verdict} {mutant}\n")
        return True

    def _reached(self, items: list[pytest.Item]) -> dict[str, dict[str, float]]:
        """Function -> the tests that call it, with their seconds.

        They run in a process of their own, so that no cache is warm for the mutants.
        """
        path = COPY / "reached.json"
        if os.fork() == 0:
            hits: set[str] = set()
            trampoline.record_trampoline_hit = lambda name, caller=None: hits.add(name)
            trampoline.set_mutant_under_test("stats")
            reached: dict[str, dict[str, float]] = {}
            for item, following in zip(items, [*items[1:], None], strict=True):
                hits.clear()
                start = time.perf_counter()
                reports = runtestprotocol(item, log=False, nextitem=following)
                if any(report.failed for report in reports):
                    sys.__stdout__.write(f"{item.nodeid} fails without a mutant\n{reports}\n")
                    EXIT(1)
                for name in hits:
                    reached.setdefault(name, {})[item.nodeid] = time.perf_counter() - start
            path.write_text(json.dumps(reached))
            EXIT(0)
        if os.waitstatus_to_exitcode(os.wait()[1]) != 0:
            raise SystemExit("tests must pass before they can judge")
        return json.loads(path.read_text())


def _judged(mutant: str, items: list[pytest.Item], seconds: float) -> str:
    """Run the tests of one mutant in a process of its own until one fails."""
    pid = os.fork()
    if pid == 0:
        limit = int(10 + 5 * seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(3 * limit)
        trampoline.set_mutant_under_test(mutant)
        try:
            for item, following in zip(items, [*items[1:], None], strict=True):
                if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                    EXIT(1)
        except BaseException:
            EXIT(1)
        EXIT(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
        return "timeout"
    return "killed" if code else "survived"


def _write_mutants(starts: list[str]) -> tuple[dict[str, list[str]], set[str]]:
    """Copy package and tests to ``mutants/``, the chosen files with every variant.

    Returns:
        File -> names of its mutants, and the tests that judge them.
    """
    for folder in ("amcsearch", "tests", "configs", "latency_tables"):
        shutil.copytree(ROOT / folder, COPY / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", COPY)
    names, tests = {}, set()
    for place, judges in MUTATED.items():
        path = ROOT / "amcsearch" / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            relative = str(file.relative_to(ROOT / "amcsearch"))
            if not relative.startswith(tuple(starts)):
                continue
            mutated = mutate_file_contents(str(file), file.read_text())
            (COPY / "amcsearch" / relative).write_text(mutated.code)
            module = ".".join(("amcsearch", *Path(relative).with_suffix("").parts)).removesuffix(".__init__")
            names[relative] = [f"{module}.{name}" for name in mutated.mutant_names]
            tests.update(f"tests/{judge}" for judge in judges)
    return names, tests


def _verdicts() -> dict[str, str]:
    """Mutant -> its last verdict."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    return {mutant: verdict for verdict, _, mutant in (line.partition(" ") for line in lines)}


def _report(names: dict[str, list[str]], drawn: dict[str, list[str]]) -> None:
    """Print a table of files, and write what survived as differences of functions."""
    verdicts, differences = _verdicts(), []
    sys.stdout.write("file | mutants | judged | killed | share\n")
    for file, mutants in names.items():
        judged = [mutant for mutant in drawn[file] if mutant in verdicts]
        killed = sum(verdicts[mutant] in KILLS for mutant in judged)
        share = f"{100 * killed / len(judged):.1f} %" if judged else "-"
        sys.stdout.write(f"{file} | {len(mutants)} | {len(judged)} | {killed} | {share}\n")
        text = (COPY / "amcsearch" / file).read_text()
        functions = {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
        for mutant in judged:
            if verdicts[mutant] not in KILLS:
                name = mutant.rpartition(".")[2]
                original = f"{name.rpartition('_')[0]}_orig"
                before, after = (ast.unparse(functions[key].body).splitlines() for key in (original, name))
                differences += [f"{verdicts[mutant]} {mutant}", *difflib.unified_diff(before, after, n=0, lineterm="")]
    (COPY / "survived.diff").write_text("\n".join(differences))


def main() -> None:
    """Read the command line, and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("files", nargs="*", default=[""], help="beginnings of paths below amcsearch; all by default")
    parser.add_argument("--sample", type=int, help="most mutants of one file")
    parser.add_argument(
        "--again", action="store_true", help="only what was not killed before, if no file changed since"
    )
    chosen = parser.parse_args()
    COPY.mkdir(exist_ok=True)
    verdicts = _verdicts()
    names, tests = _write_mutants(chosen.files)
    # a larger sample holds a smaller one
    drawn = {file: random.Random(0).sample(mutants, len(mutants))[: chosen.sample] for file, mutants in names.items()}
    asked = [name for mutants in drawn.values() for name in mutants]
    asked = [name for name in asked if not (chosen.again and verdicts.get(name) in KILLS)]
    os.chdir(COPY)
    sys.path = [str(COPY), *(entry for entry in sys.path if Path(entry).resolve() != ROOT)]
    pytest.main(["-n", "0", "-p", "no:cacheprovider", *sorted(tests)], [Mutation(asked)])
    _report(names, drawn)


if __name__ == "__main__":
    main()
