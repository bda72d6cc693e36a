"""Names in a request, checked without the registries that torch alone can import."""

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.methods import ALIASES, CRITERIA, GATES, SCHEDULES, SELECTORS
from amcsearch.runtime import RUNTIMES
from amcsearch.search import AGENTS, REWARDS
from amcsearch.service.job_kinds import read_request
from amcsearch.service.job_request import REGISTERED
from amcsearch.training import TASKS


def test_the_names_of_a_request_are_those_of_the_registries() -> None:
    assert {kind: set(names) for kind, names in REGISTERED.items()} == {
        "agents": set(AGENTS),
        "criteria": {*CRITERIA, *ALIASES},
        "selectors": set(SELECTORS),
        "rewards": set(REWARDS),
        "tasks": set(TASKS),
        "gates": set(GATES),
        "schedules": set(SCHEDULES),
        "runtimes": set(RUNTIMES),
    }


@pytest.mark.parametrize(
    ("kind", "key", "wrong"),
    [
        ("search", "search.agent", "ddgp"),
        ("search", "search.baseline", "randon"),
        ("prune", "selection.criterion", "taylr"),
        ("front", "selection.selector", "obcs"),
        ("sparsify", "sparsify.method", "gradul"),
    ],
)
def test_code_that_only_the_worker_has_is_accepted_where_a_slip_is_refused(kind: str, key: str, wrong: str) -> None:
    keys = {"model": {"factory": "a:b"}, "data": {"factory": "a:c"}}
    own = {key: "their_module:Their"}
    assert read_request({"kind": kind, "config": keys, "settings": own})[0] == kind
    with pytest.raises(BadInputError, match=f"{key} = '{wrong}' is unknown; did you mean .*own is named module:Class"):
        read_request({"kind": kind, "config": keys, "settings": {key: wrong}})
