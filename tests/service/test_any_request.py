"""Any request that the OpenAPI describes, by any caller: no error of the service, nothing that a scope does not allow.

``pytest -n 0 -rP tests/service/test_any_request.py --requests 700`` sends more than ten thousand and prints how many.
"""

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from amcsearch.service.app import create_app
from amcsearch.service.settings import ServiceLimits, ServiceSettings
from amcsearch.service.tokens import Scope

CONFIG = {
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}
OPEN: Final = {"/healthz", "/readyz"}
NAMES: Final = st.sampled_from(["pi5", "a" * 32, "0123abcd", "%2e%2e", "...", "x" * 70, "é", "a/b"])
DEVICE_PATHS: Final = st.sampled_from(
    [
        *(f"/v1/agents/{{}}/{end}" for end in ("next", "jobs/{}/plan", "jobs/{}/records", "jobs/{}/restart")),
        *("/v1/agents/{}/jobs/{}/failed", "/v1/devices/{}/jobs", "/v1/devices/{}", "/v1/jobs/{}"),
        *("/v1/jobs/{}/result", "/v1/{}"),
    ]
)
QUERIES: Final = st.dictionaries(
    st.sampled_from(["at", "instance", "threads", "provider", "minutes"]),
    st.sampled_from(["0", "1", "-1", "nan", "1e400", "a" * 32, "CPUExecutionProvider", "\0", "99999999999999999999"]),
)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SAYS: Final = st.fixed_dictionaries(
    {},
    optional={"instance": st.just("a" * 32) | JSON, "device": JSON, "reason": JSON, "kind": st.just("header") | JSON},
)
BODIES: Final = st.binary(max_size=64) | (JSON | SAYS).map(lambda value: json.dumps(value).encode())


def allowed(method: str, path: str) -> frozenset[Scope]:
    """Scopes one of which a route asks for."""
    if path == "/audit" or (method, path) == ("DELETE", "/devices/{device}"):
        return frozenset({Scope.ADMIN})
    if path.startswith("/v1/"):
        return frozenset({Scope.ADMIN, Scope.MEASURE})
    if path.startswith("/uploads"):
        return frozenset({Scope.ADMIN, Scope.SUBMIT})
    if method == "GET":
        return frozenset({Scope.ADMIN, Scope.READ})
    return frozenset({Scope.ADMIN, Scope.SUBMIT, Scope.MEASURE})


def _settings(count: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )


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
        self.any_holder = st.sampled_from(sorted(self.holders))
        self.sent = 0
        import schemathesis  # two seconds that the other tests need not wait

        self.schema = schemathesis.openapi.from_dict(self.http.get("/openapi.json").json())

    def send_all(self, count: int) -> None:
        """Send so many requests for every route."""
        from schemathesis import GenerationMode

        for result in self.schema.get_all_operations():
            operation = result.ok()
            modes = st.sampled_from((GenerationMode.POSITIVE, GenerationMode.NEGATIVE))
            cases = modes.flatmap(lambda mode, op=operation: op.as_strategy(generation_mode=mode))
            self._send(cases, operation.path, count)

    def send_to_devices(self, count: int) -> None:
        """Send so many requests to the routes of agents, which the OpenAPI leaves out."""

        @_settings(count)
        @hypothesis.given(st.data())
        def send(data: Any) -> None:
            path = data.draw(DEVICE_PATHS).format(data.draw(NAMES), data.draw(NAMES))
            arguments = {"url": path, "params": data.draw(QUERIES), "data": data.draw(BODIES)}
            method, holder = data.draw(st.sampled_from(["GET", "POST", "DELETE"])), data.draw(self.any_holder)
            self._check(method, "/v1/", holder, arguments)

        send()

    def _send(self, cases: st.SearchStrategy[Any], path: str, count: int) -> None:
        @_settings(count)
        @hypothesis.given(cases, self.any_holder, st.booleans())
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
            assert answer.status_code >= 400 or answer.status_code == 307, told  # 307 removes a slash, and does nothing
            assert answer.status_code in (401, 403, 404, 405, 307) or scopes, told
        assert not token or token not in answer.text, told


def test_no_request_breaks_the_service_or_does_what_its_caller_may_not(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count, anything = pytestconfig.getoption("requests"), AnyRequest(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anything.send_all(count)
        anything.send_to_devices(4 * count)
    sys.stdout.write(f"{anything.sent} requests were answered\n")
    assert anything.sent >= 10 * count
