"""What a request may name: code of the allow-list and files of allowed folders, under whatever key it stands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from amcsearch.config import Config, from_mapping
from amcsearch.config.identity import PATHS, SPECS
from amcsearch.config.values import ImportSpec
from amcsearch.core import BadInputError
from amcsearch.service.allowed import SHIPPED, Allowed, file_inside
from amcsearch.training import DATASETS, MODELS

TINY = {"model": {"factory": "amcsearch.training.models:vgg"}, "data": {"factory": "amcsearch.training.data:digits"}}
SPEC_CHECK = get_args(ImportSpec)[1]


def import_keys(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Keys of the configuration whose annotation has ``ImportSpec`` in it."""
    for name, field in section.model_fields.items():
        if SPEC_CHECK in field.metadata or any(SPEC_CHECK in get_args(part) for part in get_args(field.annotation)):
            yield (*prefix, name)
        for inner in sections_in(field.annotation):
            yield from import_keys(inner, (*prefix, name))


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def nested(keys: tuple[str, ...], value: object) -> dict[str, object]:
    inner: object = value
    for key in reversed(keys):
        inner = {"extra" if key == "*" else key: inner}
    assert isinstance(inner, dict)
    return inner


@pytest.fixture
def allowed(tmp_path: Path) -> Allowed:
    return Allowed(tmp_path / "runs", ("my_models:*", f"{tmp_path}/code/*.py:make*"), (tmp_path / "weights",))


def refuses(allowed: Allowed, values: object) -> str:
    with pytest.raises(BadInputError) as error:
        allowed.check(values)
    text = str(error.value)
    assert "\n" not in text
    return text


class TestCode:
    def test_what_ships_is_the_registries(self) -> None:
        models = {f"amcsearch.training.models:{name}" for name in MODELS}
        assert models | {f"amcsearch.training.data:{name}" for name in DATASETS} == SHIPPED

    def test_every_import_key_of_the_schema_is_refused(self, allowed: Allowed) -> None:
        keys = {*import_keys(Config), *SPECS}
        assert {("model", "factory"), ("data", "collate"), ("device", "costs", "model")} <= keys
        for path in keys:
            assert "--allow MODULE:CALLABLE" in refuses(allowed, {"config": nested(path, "os:system")})
            allowed.check({"config": nested(path, "my_models:make")})

    def test_a_key_that_is_new_is_covered(self, allowed: Allowed) -> None:
        class Later(Config):
            brand_new: ImportSpec = "os:system"

        told = refuses(allowed, Later.model_validate_json(json.dumps(TINY)).model_dump(mode="json"))
        assert told.startswith("brand_new = 'os:system' names code that this service does not allow")

    @given(
        st.recursive(
            st.just("subprocess:run"),
            lambda inner: (
                st.lists(inner, min_size=1, max_size=2) | st.dictionaries(st.text(max_size=3), inner, min_size=1)
            ),
            max_leaves=6,
        )
    )
    def test_code_is_refused_wherever_it_stands(self, values: object) -> None:
        refuses(Allowed(Path("runs")), values)

    def test_arguments_beside_the_configuration_are_looked_at(self, allowed: Allowed) -> None:
        assert refuses(allowed, {"kind": "compare", "agents": ["random", "evil:Agent"]}).startswith("agents.1 = ")
        assert refuses(allowed, {"settings": {"search.agent": "evil:Agent"}}).startswith("settings.search.agent = ")

    @pytest.mark.parametrize(
        "spec",
        [
            *(
                "amcsearch.config:import_factory",
                "amcsearch.training.models:Callable",
                "my_models2:make",
                "my_models.sub:make",
            ),
            *("builtins:eval", ":make", "x:my_models:make", "evil:0", "my_models/../evil.py:make"),
            *(
                "{code}/../evil.py:make",
                "{code}/good.py:other",
                "{code}/link.py:make",
                "~/good.py:make",
                "good.py:make",
            ),
        ],
    )
    def test_what_only_looks_allowed_is_refused(self, tmp_path: Path, spec: str, allowed: Allowed) -> None:
        code = tmp_path / "code"
        code.mkdir()
        (code / "good.py").touch()
        (tmp_path / "evil.py").touch()
        (code / "link.py").symlink_to(tmp_path / "evil.py")
        refuses(allowed, [spec.format(code=code)])
        allowed.check([f"{code}/good.py:make_it", f"{code}/../code/good.py:make"])

    def test_a_configuration_of_what_ships_passes(
        self, allowed: Allowed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        config = from_mapping({**TINY, "device": {"profile": "x86_server"}, "evaluation": {"torch_device": "cuda:0"}})
        allowed.check({"kind": "search", "config": config.model_dump(mode="json"), "devices": ["x86_server"]})

    def test_a_pattern_without_a_colon_is_refused(self) -> None:
        with pytest.raises(BadInputError, match=r"allowed factory 'my_models', expected MODULE:CALLABLE"):
            Allowed(Path("runs"), ("my_models",))


class TestFiles:
    @pytest.mark.parametrize(
        "text",
        [
            *("/etc/passwd", "../secret", "weights/../../secret", "~/.ssh/id_rsa", "~root/x", "..", ".", "a\\..\\b"),
            *(
                "{weights}/../secret",
                "{weights}/out",
                "{runs}/service.db",
                "{runs}/0123/output.log",
                "{runs}",
                "{runs}/..",
            ),
            *("/proc/self/environ", "secret", "{weights}2/x", "x/" * 3000, "\ud800/x", "a\0b"),
        ],
    )
    def test_what_leads_out_is_refused(
        self, tmp_path: Path, text: str, allowed: Allowed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for folder in ("weights", "weights2", "runs"):
            (tmp_path / folder).mkdir()
        (tmp_path / "secret").touch()
        (tmp_path / "weights/out").symlink_to(tmp_path / "secret")
        names = {"weights": tmp_path / "weights", "runs": tmp_path / "runs"}
        for keys in (*PATHS, ("data", "kwargs", "root"), ("task", "params", "file")):
            refuses(allowed, nested(keys, text.format(**names)))

    def test_what_the_operator_allows_passes(self, tmp_path: Path, allowed: Allowed) -> None:
        allowed.check([f"{tmp_path}/weights/net.safetensors", f"{tmp_path}/runs/0123/run/policy.json"])
        allowed.check([f"{tmp_path}/runs/uploads/ci/net.safetensors", "configs/devices/x86_server.yaml"])

    def test_runs_stay_closed_inside_an_allowed_folder(self, tmp_path: Path) -> None:
        refuses(Allowed(tmp_path / "runs", folders=(tmp_path,)), [f"{tmp_path}/runs/service.db"])


class TestFileOfARun:
    @pytest.mark.parametrize(
        "path",
        [
            *(
                "",
                "/",
                ".",
                "..",
                "../secret",
                "a/../../secret",
                "/etc/passwd",
                "%2e%2e/secret",
                "..\\secret",
                "a\\b",
                "a//b",
            ),
            *(
                "out",
                "folder/deep/secret",
                ".lock",
                "a/.hidden",
                "C:/x",
                "c:\\x",
                "a\0b",
                "a/",
                "a",
                "x" * 5000,
                "\ud800",
                "loop",
            ),
        ],
    )
    def test_nothing_leads_out(self, tmp_path: Path, path: str) -> None:
        run = tmp_path / "run"
        (run / "a").mkdir(parents=True)
        (run / "a/.hidden").touch()
        (run / ".lock").touch()
        (tmp_path / "secret").touch()
        (run / "out").symlink_to(tmp_path / "secret")
        (run / "folder").mkdir()
        (run / "folder/deep").symlink_to(tmp_path)
        (run / "loop").symlink_to(run / "loop")
        assert file_inside(run, path) is None

    def test_a_file_of_the_run_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/b.json").touch()
        (tmp_path / "near").symlink_to(tmp_path / "a/b.json")
        assert file_inside(tmp_path, "a/b.json") == (tmp_path / "a/b.json").resolve()
        assert file_inside(tmp_path, "near") == (tmp_path / "a/b.json").resolve()
        assert file_inside(tmp_path / "none", "x") is None
