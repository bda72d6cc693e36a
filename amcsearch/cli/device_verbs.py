"""The verbs of devices that are not here: ``amcsearch verify`` with its kit."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.cli.verbs import show
from amcsearch.core import BadInputError

if TYPE_CHECKING:
    from amcsearch.reporting import ProgressBar

__all__ = ["verify"]

KIT: Final = "kit"


def verify(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Write the kit of a run, or take what it measured."""
    if str(args.run_or_kit) == KIT:
        _write_kit(args, args.what)
        return
    from amcsearch import api
    from amcsearch.cli.text import summary_text

    if args.out is not None:
        raise BadInputError(f"-o {args.out} names a kit to write: amcsearch verify kit RUN -o {args.out}")
    result = api.verify(args.run_or_kit, args.what, observer=console)
    console.close()
    show(args, result.summary.to_json(), summary_text(result.summary, result.folder), result.folder)


def _write_kit(args: argparse.Namespace, folder: Path) -> None:
    from amcsearch.jobs import write_verify_kit
    from amcsearch.runs import RunFolder

    if args.out is None:
        raise BadInputError(f"say where the kit goes: amcsearch verify kit {folder} -o verify.pyz")
    kit = write_verify_kit(RunFolder.open(folder), args.out)
    text = f"{kit.kit}: {kit.models} models, {kit.bytes / 2**20:.1f} MiB; on the device: {kit.run}; then: {kit.then}"
    show(args, {**asdict(kit), "kit": str(kit.kit)}, text, kit.kit)
