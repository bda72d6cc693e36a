"""The generated parts of the documentation: complete, and the check that no page loads from another host."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

import amcsearch
from amcsearch.cli.parser import make_parser
from amcsearch.config import json_schema
from amcsearch.core import PolicySpace
from amcsearch.methods import CRITERIA, GATES, SCHEDULES, SELECTORS
from amcsearch.search import AGENTS, REWARDS

DOCS = Path(__file__).parents[1] / "docs"
REGISTRIES = {
    "criteria": CRITERIA,
    "selectors": SELECTORS,
    "gates": GATES,
    "schedules": SCHEDULES,
    "agents": AGENTS,
    "rewards": REWARDS,
}


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate, hosts = _module("generate"), _module("hosts")


def test_every_place_on_a_page_has_text():
    asked = [
        line.removeprefix("<!-- generate: ").removesuffix(" -->")
        for page in DOCS.rglob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("<!-- generate: ")
    ]
    assert sorted(asked) == sorted(generate.GENERATORS)


def test_every_verb_and_option_is_on_the_page():
    text = generate.command_line()
    verbs = next(a for a in make_parser()._actions if a.dest == "==SUPPRESS==" or getattr(a, "choices", None)).choices
    for name, command in verbs.items():
        assert f"`amcsearch {name}" in text
        for option in (o for a in command._actions for o in a.option_strings if o not in ("-h", "--help")):
            assert f"`{option}`" in text


def test_a_placeholder_in_a_help_text_is_not_html():
    assert "runs/&lt;name>" in generate.command_line()


def test_a_limit_of_a_number_is_in_its_type():
    text = generate.configuration()
    assert "| `trials` | integer > 0, ≤ 10000000 | `200` |" in text
    assert "| `confidence` | number ≥ 0.5, < 1.0 | `0.95` |" in text
    assert "| `factory` | text or `null` | required |" in text
    assert "| `storage` | `bitmap`, `csr`, `run_length` | `bitmap` |" in text


def test_a_section_shows_the_defaults_of_its_place():
    """``sparsify.training`` begins at 0.02 where ``model.pretrain`` begins at 0.1."""
    text = generate.configuration()
    section = text.partition("## `sparsify.training`")[2].partition("\n## ")[0]
    assert "| `learning_rate` | number > 0.0, ≤ 1000000.0 | `0.02` |" in section
    assert (
        "| `learning_rate` | number > 0.0, ≤ 1000000.0 | `0.1` |"
        in text.partition("## `model.pretrain`")[2].partition("\n## ")[0]
    )


def _keys(schema: Mapping[str, object], parts: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    for key, entry in schema["properties"].items():
        name = generate._section_name(entry)
        if name is not None and "properties" in parts[name]:
            yield f"{path}{key}", entry.get("description") or parts[name].get("description", "")
            yield from _keys(parts[name], parts, f"{path}{key}.")
        else:
            yield f"{path}{key}", entry.get("description", "")


def test_every_key_of_the_configuration_has_a_meaning():
    schema = json_schema()
    assert not [path for path, meaning in _keys(schema, schema["$defs"]) if not meaning]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_method_has_its_section_with_its_parameters(kind):
    text = generate.methods(kind)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    for name in REGISTRIES[kind]:
        assert any(f"`{name}`" in heading for heading in headings)


def test_a_method_shows_formula_and_parameters():
    section = generate.methods("criteria").partition("## `magnitude`")[2].partition("\n## ")[0]
    assert "saliency = |w|^p" in section
    assert "| `p` | `float` | `2.0` |" in section


def test_aliases_are_told_with_what_they_stand_for():
    assert "| `true_fisher` | `fisher` | `{labels: model}` |" in generate.methods("criteria")


def test_the_api_page_renders_the_public_names(monkeypatch):
    monkeypatch.setattr(amcsearch, "__all__", ["__version__", "PolicySpace"], raising=False)
    monkeypatch.setattr(amcsearch, "PolicySpace", PolicySpace, raising=False)
    text = generate.api()
    assert "::: amcsearch.core.policy.PolicySpace" in text
    assert 'heading: "amcsearch.PolicySpace"' in text
    assert "__version__" not in text


def test_the_api_page_without_names_is_empty(monkeypatch):
    monkeypatch.setattr(amcsearch, "__all__", [], raising=False)
    assert generate.api() == ""


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://a.org/x.js"></script>',
        '<link rel="stylesheet" href="https://a.org/x.css">',
        '<link href="//a.org/font" rel="preconnect">',
        '<img src="http://a.org/x.png">',
        '<img srcset="x.png 1x, https://a.org/y.png 2x" src="x.png">',
        "<style>@import 'https://a.org/x.css';</style>",
        '<div style="background: url(https://a.org/x.png)"></div>',
    ],
)
def test_what_another_host_would_serve_is_named(html):
    assert hosts.loaded_by_page(html)
    assert "a.org" in hosts.loaded_by_page(html)[0]


def test_links_that_a_reader_follows_are_allowed():
    html = '<a href="https://arxiv.org/abs/1802.03494">AMC</a><script src="../x.js"></script><img src="x.png">'
    assert hosts.loaded_by_page(html + '<link rel="canonical" href="https://a.org/">') == []


def test_styles_are_searched_too():
    assert hosts.loaded_by_style("@font-face { src: url(https://fonts.org/a.woff2) }") == ["https://fonts.org/a.woff2"]
    assert hosts.loaded_by_style("a { background: url(../x.svg) }") == []
