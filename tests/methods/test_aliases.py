"""Aliases of criteria: what they stand for, and that they give its numbers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amcsearch.config import build
from amcsearch.core.errors import BadInputError
from amcsearch.graph import HeldBatches
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import ALIASES, CRITERIA, unaliased
from amcsearch.methods.criteria.fisher import Fisher
from amcsearch.methods.criteria.taylor import Taylor
from amcsearch.methods.ranking import UnitScores, score_units

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 0, 1, 0, 1])


def scores(name: str) -> UnitScores:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)).double()
    registered, params = unaliased(name, {})
    criterion = build(CRITERIA[registered], params, "selection.params")
    return score_units(model, trace(model, X[:1]), {"": criterion}, HeldBatches.of(X, Y, 4), F.cross_entropy)[""]


def test_no_alias_hides_a_criterion() -> None:
    assert not set(ALIASES) & set(CRITERIA)
    assert {name for name, _ in ALIASES.values()} <= set(CRITERIA)


def test_an_alias_is_a_name_with_parameters() -> None:
    assert unaliased("true_fisher", {}) == ("fisher", {"labels": "model"})
    assert unaliased("true_fisher", {"seed": 3}) == ("fisher", {"labels": "model", "seed": 3})
    assert unaliased("true_fisher", {"labels": "data"}) == ("fisher", {"labels": "data"})
    assert unaliased("fisher", {"seed": 3}) == ("fisher", {"seed": 3})
    assert unaliased("nothing", {}) == ("nothing", {})


@pytest.mark.parametrize(
    ("alias", "criterion"),
    [
        ("taylor_bn", Taylor("bn")),
        ("taylor_joint", Taylor("joint")),
        ("taylor_parameterwise", Taylor("parameterwise")),
        ("taylor_per_sample", Taylor("per_sample")),
        ("taylor_act2017", Taylor("act2017")),
        ("true_fisher", Fisher(labels="model")),
    ],
)
def test_an_alias_makes_the_criterion_it_stands_for(alias: str, criterion: object) -> None:
    name, params = ALIASES[alias]
    assert build(CRITERIA[name], params, "selection.params") == criterion


def test_no_two_names_score_alike_but_per_sample_taylor_which_is_twice_fisher() -> None:
    every = {name: scores(name)["0"] for name in (*CRITERIA, *ALIASES)}
    np.testing.assert_allclose(every.pop("taylor_per_sample"), 2.0 * every["fisher"])
    del every["wanda_channels"]  # the same as wanda where what is read is a matrix
    assert len({tuple(np.round(values / np.abs(values).max(), 9)) for values in every.values()}) == len(every)


def test_a_wrong_parameter_of_an_alias_is_named() -> None:
    registered, params = unaliased("taylor_bn", {"varient": "bn"})
    with pytest.raises(BadInputError, match=r"selection\.params\.varient is unknown; did you mean 'variant'"):
        build(CRITERIA[registered], params, "selection.params")
