"""Large layers that pruning cannot reach are named with their share of the MACs and the reason."""

import json
from pathlib import Path

import pytest
from torch import nn

from amcsearch.cli.main import main
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.graph.slices import Skipped, Trace
from amcsearch.jobs.left_alone import largest_left_alone

ODD = Path(__file__).parents[1] / "odd_networks.py"


def linear(name: str, width: int) -> LayerSpec:
    return LayerSpec(name, LayerKind.LINEAR, width, width)


def test_by_hand() -> None:
    layers = (linear("a.q", 8), linear("b", 4), linear("c", 4), linear("tiny", 1))  # 64, 16, 16 and 1 of 97 MACs
    skipped = (Skipped("a", "packed"), Skipped("b", "unknown"))
    trace = Trace(network=NetworkSpec(layers, ()), slices={}, units={}, norms={}, skipped=skipped)
    named = largest_left_alone(trace)
    assert [str(layer) for layer in named] == [
        "a.q (66% of the MACs): packed",
        "b (16% of the MACs): unknown",
        "c (16% of the MACs): none of the channels that it reads and writes can be pruned",
        "tiny (1% of the MACs): none of the channels that it reads and writes can be pruned",
    ]


def test_a_dry_run_and_an_infeasible_budget_name_them(
    write_config, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [str(write_config()), "--set", f"model.factory={ODD}:Looped", "--set", "model.pretrain=null"]
    assert main(["search", *config, "--dry-run", "--json", "--set", "budget.macs=0.9x"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["network"]["left_alone"]
    assert layer["name"].startswith("loop")
    assert layer["share"] > 0.3
    assert main(["search", *config, "--dry-run", "--set", "budget.macs=0.9x"]) == 0
    assert f"  left alone: {layer['name']} ({layer['share']:.0%} of the MACs): " in capsys.readouterr().out
    assert main(["search", *config, "--set", "budget.macs=0.1x", "--out", str(tmp_path / "run")]) == 3
    assert f"; left alone: {layer['name']} ({layer['share']:.0%} of the MACs): " in capsys.readouterr().err


def test_nothing_is_named_where_everything_can_be_pruned() -> None:
    import torch

    from amcsearch.graph.tracing.trace import trace

    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert largest_left_alone(trace(model, torch.zeros(1, 1, 8, 8))) == ()
