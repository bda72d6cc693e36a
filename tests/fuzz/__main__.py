"""Feed many mutated documents to every reader: ``python -m tests.fuzz --inputs 100000``.

Prints one row a reader, and every fault with the edits that repeat it. The exit code is 1 where there is a fault.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz import mutations, running, targets


def main() -> int:
    """Feed the readers their shares of the inputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together (default 100000)")
    parser.add_argument("--target", action="append", choices=list(targets.TARGETS), help="only these readers")
    parser.add_argument("--fixed", action="store_true", help="the same inputs each time")
    args = parser.parse_args()
    chosen = [targets.TARGETS[name] for name in args.target or targets.TARGETS]
    shares = sum(target.share for target in chosen)
    _say("| reader | inputs | read | refused | faults | seconds | slowest input, s |\n|---|---|---|---|---|---|---|")
    faults = 0
    for target in chosen:
        tally = _feed(target, round(args.inputs * target.share / shares), random=not args.fixed)
        counts = (tally.inputs, *(tally.outcomes[name] for name in ("read", "refused", "fault")))
        _say(
            f"| {target.name} | {' | '.join(map(str, counts))} | {tally.seconds:.0f} | {tally.slowest_s:.2f} |",
        )
        for place, edits in tally.faults.items():
            _say(f"    {place}: {edits}")
        faults += len(tally.faults)
    return 1 if faults else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _feed(target: targets.Target, count: int, *, random: bool) -> running.Tally:
    base = target.make()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "input"

        def read(edits: list[mutations.Edit]) -> str:
            mutations.mutate(folder, base, edits)
            return targets.outcome(lambda: target.read(folder))

        return running.feed(mutations.EDITS, max(count, 1), read, random=random)


if __name__ == "__main__":
    sys.exit(main())
