"""Any request that the OpenAPI describes, by any caller: no error of the service, nothing that a scope does not allow.

``pytest -n 0 tests/service/test_any_request.py --requests 700`` sends more than ten thousand.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import GenerationMode

from amcsearch.service.app import create_app
from amcsearch.service.settings import ServiceLimits, ServiceSettings
from amcsearch.service.tokens import Scope

CONFIG = {
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}
OPEN: Final = {"/healthz", "/readyz"}


def allowed(method: str, path: str) -> frozenset[Scope]:
    """Scopes one of which a route asks for."""
    if path == "/audit" or (method, path) == ("DELETE", "/devices/{device}"):
        return frozenset({Scope.ADMIN})
    if method == "GET":
        return frozenset({Scope.ADMIN, Scope.READ})
    return frozenset({Scope.ADMIN, Scope.SUBMIT, Scope.MEASURE})


class AnyRequest:
    """Sends generated requests by every kind of caller, and checks each answer."""

    def __init__(self, folder: Path) -> None:
        app = create_app(ServiceSettings(folder, needs_token=True, limits=ServiceLimits(waiting_jobs=3)))
        self.http = TestClient(
            app,
            base_url="http://127.0.0.1",
            client=("127.0.0.1", 1),
            raise_server_exceptions=False,
            follow_redirects=False,
        )
        service = app.state.service
        self.holders = {
            scope.value: (service.tokens.create(scope.value, [scope], None).text, {scope}) for scope in Scope
        }
        self.holders["expired"] = (service.tokens.create("expired", list(Scope), -1.0).text, set())
        self.holders["none"] = ("", set())
        job = service.table.submit("search", "tiny", {"config": CONFIG}, Scope.SUBMIT.value)
        self.job = service.table.cancel(job.id).id
        self.sent = 0
        self.schema = schemathesis.openapi.from_dict(self.http.get("/openapi.json").json())

    def send_all(self, count: int) -> None:
        """Send so many requests for every route."""
        for result in self.schema.get_all_operations():
            operation = result.ok()
            modes = st.sampled_from((GenerationMode.POSITIVE, GenerationMode.NEGATIVE))
            cases = modes.flatmap(lambda mode, op=operation: op.as_strategy(generation_mode=mode))
            self._send(cases, operation.path, count)

    def _send(self, cases: st.SearchStrategy[Any], path: str, count: int) -> None:
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @hypothesis.given(cases, st.sampled_from(sorted(self.holders)), st.booleans())
        def send(case: Any, holder: str, is_known: bool) -> None:
            if is_known and "job" in case.path_parameters:
                case.path_parameters["job"] = self.job
            self._check(case.method.upper(), path, holder, case.as_transport_kwargs(base_url="http://127.0.0.1"))

        send()

    def _check(self, method: str, path: str, holder: str, arguments: Mapping[str, Any]) -> None:
        token, scopes = self.holders[holder]
        names = ("url", "params", "json", "data", "cookies")
        content = {name: arguments[name] for name in names if arguments.get(name)}
        if isinstance(content.get("data"), bytes | str):
            content["content"] = content.pop("data")
        headers = {k: v for k, v in (arguments.get("headers") or {}).items() if k.lower() != "authorization"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            answer = self.http.request(method, headers=headers, **content)
        except (UnicodeEncodeError, ValueError):  # what no client can send
            return
        self.sent += 1
        told = (method, path, holder, arguments, answer.text[:300])
        assert answer.status_code < 500, told
        assert "Traceback" not in answer.text, told
        if path not in OPEN and not scopes & allowed(method, path):
            assert answer.status_code >= 400, told
            assert answer.status_code in (401, 403, 404, 405, 307) or scopes, told
        assert not token or token not in answer.text, told


def test_no_request_breaks_the_service_or_does_what_its_caller_may_not(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count, anything = pytestconfig.getoption("requests"), AnyRequest(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anything.send_all(count)
    assert anything.sent >= 10 * count
