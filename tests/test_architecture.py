"""The shape of the house, read from the source: floors, doors, sizes and manners (no module is imported).

Every rule is a function from a module to what it does wrong; each is also shown a module that breaks it.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amcsearch"
MODULE_LINES = 400
SMALL = 120  # lines up to which a module needs two importers
FUNCTION_LINES = 40  # without the docstring

# imports go down only, and rooms of one floor do not know each other
FLOORS = (
    {"core"},
    {"graph", "runs", "costs"},
    {"config", "reporting"},
    {"methods", "runtime"},
    {"training", "measure"},
    {"recovery"},
    {"evaluation"},
    {"search"},
    {"jobs", "testing"},
    {"api"},
    {"service"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# the only modules that may import a library
DOORS: dict[str, tuple[str, ...]] = {
    "cloudpickle": ("evaluation.cluster",),
    "distributed": ("evaluation.cluster",),
    "alembic": ("service.database", "service.migrations.*"),
    "anyio": ("service.access", "service.feeds", "service.routes.*"),
    "fastapi": ("service.*",),
    "gymnasium": ("search.reinforcement.*",),
    "httpx": ("service.client", "service.connection"),
    "jinja2": ("service.rendering",),
    "matplotlib": ("reporting.*",),
    "onnx": ("runtime.*", "measure.*"),
    "onnxruntime": ("runtime.*",),
    "optuna": ("search.samplers", "search.study*"),
    "pandas": (
        "costs.latency.*",
        "runs.*",
        "reporting.*",
        "jobs.result",
        "jobs.compare",
        "jobs.energy",
        "jobs.front",
        "jobs.sensitivity",
    ),
    "prometheus_client": ("service.routes.health",),
    "psycopg": ("search.study_database",),
    "pydantic": ("config.*",),
    "pydantic_core": ("config.*",),
    "pytest": ("testing", "testing.*"),
    "safetensors": ("training.tensor_files",),
    "scipy": (
        "evaluation.bounds",
        "evaluation.sensitivity",
        "measure.build.*",
        "search.comparison",
        "search.surrogate",
    ),
    "sklearn": ("search.surrogate", "training.data*"),
    "sqlalchemy": ("search.study*", "service.*"),
    "stable_baselines3": ("search.reinforcement.*",),
    "starlette": ("service.*",),
    "threadpoolctl": ("measure.build.*",),
    "torch": (
        *("graph.*", "methods.*", "runtime.*", "measure.*", "training.*", "recovery.*", "evaluation.*"),
        *("search.reinforcement.*", "jobs.*", "api.*", "testing.*"),
    ),
    "torchmetrics": ("training.tasks.*",),
    "tqdm": ("reporting.progress",),
    "uvicorn": ("service.*",),
    "yaml": ("config.*",),
    "numpy": ("*",),
}


# rows of registries, verbs and doors: what is named elsewhere than in an import
ROWS = (
    *("methods.criteria.*", "methods.gates.*", "methods.schedules.*", "methods.selectors.*", "training.models.*"),
    *("training.tasks.*", "runtime.executorch_runtime", "runtime.operators"),
    *("search.netadapt", "search.reinforcement.environment", "jobs.*", "runtime.on_device.__main__", "__main__"),
    *("cli.main", "cli.*_verbs", "graph.masks"),
    *("service.app", "service.serve", "service.routes.*", "service.migrations.*"),
)


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def _nodes(source: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(_parsed(source)))


# where keys come from outside: words of a configuration, lines of a device, states of torch, gymnasium's own types
JSON_EDGES = ("config.*", "runtime.on_device.*", "runtime.session", "measure.kit.*", "measure.agents.*", "training.*")
JSON_EDGES += ("search.reinforcement.environment",)
JSON_METHODS = ("to_json", "from_json", "as_mapping", "from_mapping")
EMPTY_NAMES = frozenset({"found", "own", "seen", "places", "rest", "one", "ones", "times", "said", "heard", "what"})
_UNTYPED = re.compile(r"(dict|Mapping)\[str, Any\]")


@dataclass(frozen=True)
class Module:
    """``name`` is dotted, without the package: ``costs.grid``; a room's face is the room's name."""

    name: str
    source: str
    is_face: bool = False

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def tree(self) -> ast.Module:
        return _parsed(self.source)

    @property
    def nodes(self) -> tuple[ast.AST, ...]:
        return _nodes(self.source)

    @property
    def imports(self) -> list[str]:
        """Absolute dotted names of everything imported, ``module.name`` for ``from module import name``."""
        found = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        return found


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found.append(Module(name, path.read_text(encoding="utf-8"), parts[-1] == "__init__"))
    return tuple(found)


def wrong_floors(module: Module) -> Iterator[str]:
    if module.room not in FLOOR:
        yield f"room {module.room!r} has no floor; give it one in FLOORS"
        return
    for target in module.imports:
        if target.startswith("."):
            yield f"relative import {target}"
        root, _, rest = target.partition(".")
        room = rest.partition(".")[0]
        if root != "amcsearch" or room == module.room or room.startswith("__version__"):
            continue
        if FLOOR.get(room, len(FLOORS)) >= FLOOR[module.room]:
            yield f"imports {target}, which is not on a lower floor"


def past_the_face(module: Module) -> Iterator[str]:
    """Imports from another room that do not go through its ``__init__``, or of a name that it does not offer."""
    faces = {other.name: _exported(other.tree) or [] for other in modules() if other.is_face and other.name in FLOOR}
    for node in module.nodes:
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("amcsearch."):
            continue
        target = (node.module or "").removeprefix("amcsearch.")
        room = target.partition(".")[0]
        if room == module.room or room not in FLOOR:
            continue
        if target != room and room in faces:
            yield f"imports {target}, inside another room; import from amcsearch.{room}"
        lost = [alias.name for alias in node.names if alias.name not in faces.get(room, [alias.name])]
        if target == room and lost:
            yield f"imports {lost}, which amcsearch.{room} does not offer in __all__"


def wrong_doors(module: Module) -> Iterator[str]:
    for target in module.imports:
        library = target.partition(".")[0]
        if library == "amcsearch" or library in sys.stdlib_module_names or not library:
            continue
        if not any(
            fnmatch(f"{module.name}.", f"{door}.") or fnmatch(module.name, door) for door in DOORS.get(library, ())
        ):
            yield f"imports {library} outside its door {DOORS.get(library, 'none: add it to DOORS')}"


def too_long(module: Module) -> Iterator[str]:
    lines = module.source.count("\n")
    if lines > MODULE_LINES:
        yield f"{lines} lines, at most {MODULE_LINES}"
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if length > FUNCTION_LINES:
                yield f"{node.name} has {length} lines of code, at most {FUNCTION_LINES}"


def bad_manners(module: Module) -> Iterator[str]:
    if {"utils", "helpers", "misc", "common", "v2"} & set(module.name.split(".")):
        yield "a name that says nothing"
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"star import in line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"eval", "exec"}:
                yield f"{node.func.id} in line {node.lineno}"
            if node.func.id == "print" and module.room != "cli":
                yield f"print in line {node.lineno}"


def untyped_mappings(module: Module) -> Iterator[str]:
    """Signatures and fields with ``dict[str, Any]`` in what a room offers to others: what has keys is a dataclass."""
    if any(fnmatch(module.name, pattern) for pattern in JSON_EDGES):
        return
    offered = next((_exported(m.tree) or [] for m in modules() if m.is_face and m.name == module.room), [])
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in offered:
            members = [node] if isinstance(node, ast.FunctionDef) else node.body
            for member in members:
                if any(_UNTYPED.search(ast.unparse(annotation)) for annotation in _annotations(member)):
                    yield f"{node.name} has dict[str, Any] in line {member.lineno}; make it a dataclass"


def _annotations(member: ast.stmt) -> list[ast.expr]:
    if isinstance(member, ast.AnnAssign):
        return [member.annotation]
    if not isinstance(member, ast.FunctionDef) or member.name.startswith("_") or member.name in JSON_METHODS:
        return []
    arguments = [argument.annotation for argument in (*member.args.args, *member.args.kwonlyargs)]
    return [annotation for annotation in (*arguments, member.returns) if annotation is not None]


def says_nothing(module: Module) -> Iterator[str]:
    """Variables and parameters called ``found`` or ``rest``: the name points at something and does not say what."""
    for node in module.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in EMPTY_NAMES:
            yield f"{node.id} is bound in line {node.lineno}; say what it is"
        if isinstance(node, ast.arg) and node.arg in EMPTY_NAMES:
            yield f"{node.arg} is a parameter in line {node.lineno}; say what it is"


def tunnels(module: Module) -> Iterator[str]:
    """Functions that take ``**anything`` only to hand it on: nobody can see what they accept."""
    for function in module.nodes:
        if not isinstance(function, ast.FunctionDef) or function.args.kwarg is None:
            continue
        name = function.args.kwarg.arg
        passed = (k for call in ast.walk(function) if isinstance(call, ast.Call) for k in call.keywords)
        if any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == name for k in passed):
            yield f"{function.name} tunnels **{name}"


def _bound(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def wrong_exports(module: Module) -> Iterator[str]:
    exported = _exported(module.tree)
    if exported is None:
        if module.name != "__main__" and any(_bound(module.tree)):  # a face may hold its docstring alone
            yield "no __all__"
        return
    lost = sorted(set(exported) - set(_bound(module.tree)))
    if lost:
        yield f"__all__ names what does not exist: {lost}"
    if len(set(exported)) < len(exported) or any(name.startswith("_") for name in exported):
        yield f"__all__ repeats a name or offers a private one: {exported}"


def undocumented(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield "no docstring"


Rule = Callable[[Module], Iterator[str]]
RULES: tuple[Rule, ...] = (
    *(wrong_floors, past_the_face, wrong_doors, too_long, bad_manners, untyped_mappings, tunnels, says_nothing),
    *(wrong_exports, undocumented),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    found = [f"{module.name}: {finding}" for module in modules() for finding in rule(module)]
    assert not found, "\n" + "\n".join(found)


def importers(sources: Iterable[Module]) -> dict[str, set[str]]:
    """Module → the modules that import something defined in it, directly or through a face."""
    by_name = {module.name: module for module in sources}
    imported = {module.name: dict(_imported(module.tree)) for module in by_name.values()}

    def defining(target: str, name: str) -> str:
        if f"{target}.{name}" in by_name and name not in imported[target]:
            return f"{target}.{name}"
        if by_name[target].is_face and name in imported[target]:
            return defining(*imported[target][name])
        return target

    found: dict[str, set[str]] = {name: set() for name in by_name}
    for name, pairs in imported.items():
        for target, original in pairs.values():
            if target in by_name and not by_name[name].is_face:
                found[defining(target, original)].add(name)
    return found


def _imported(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amcsearch."):
            for alias in node.names:
                yield alias.asname or alias.name, ((node.module or "").removeprefix("amcsearch."), alias.name)


def _is_row(module: Module) -> bool:
    """A row of a registry (its folder's face holds the registry), a verb or a name of the public API."""
    return any(fnmatch(module.name, pattern) for pattern in ROWS)


def too_small(sources: Sequence[Module]) -> list[str]:
    """Modules of up to 120 lines that one other module alone imports: they belong into it."""
    found = importers(sources)
    small = (m for m in sources if not m.is_face and m.source.count("\n") <= SMALL and not _is_row(m))
    return [f"{m.name} is imported by {found[m.name] or 'nobody'} alone" for m in small if len(found[m.name]) < 2]


def test_no_small_module_serves_one_other_module_alone() -> None:
    assert not too_small(modules())


def test_small_modules_of_one_importer_are_seen() -> None:
    face = Module("costs", "from amcsearch.costs.a import f", is_face=True)
    a = Module("costs.a", "def f(): ...")
    one = Module("search.one", "from amcsearch.costs import f" + "\n" * (SMALL + 1))
    two = Module("search.two", "from amcsearch.costs.a import f" + "\n" * (SMALL + 1))
    assert len(too_small([face, a, one])) == 1
    assert not too_small([face, a, one, two])


def circle(imports: dict[str, list[str]]) -> list[str] | None:
    """A circle of modules, or None; an edge goes to the deepest module that an imported name names."""
    graph: dict[str, set[str]] = {}
    for name, targets in imports.items():
        within = (target.removeprefix("amcsearch.") for target in targets if target.startswith("amcsearch."))
        reached = (target if target in imports else target.rpartition(".")[0] for target in within)
        graph[name] = {target for target in reached if target in imports}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circle({module.name: module.imports for module in modules()}) is None


def test_circles_are_seen() -> None:
    chain = {"a": ["amcsearch.b.name"], "b": ["amcsearch.c"], "c": ["numpy.array"]}
    assert circle(chain) is None
    assert set(circle({**chain, "c": ["amcsearch.a.other"]}) or ()) == {"a", "b", "c"}


LONG = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
LEDGER = [
    (wrong_floors, "core.x", "from amcsearch.costs import grid"),
    (wrong_floors, "costs.x", "from amcsearch.graph.tracing.trace import trace"),
    (wrong_floors, "graph.x", "import amcsearch.costs"),
    (wrong_floors, "costs.x", "from .grid import CostGrid"),
    (wrong_floors, "attic.x", ""),
    (past_the_face, "graph.x", "from amcsearch.core.cost import Cost"),
    (past_the_face, "graph.x", "from amcsearch.core import Costs"),
    (wrong_doors, "costs.grid", "import torch"),
    (wrong_doors, "costs.grid", "from torch.nn import Module"),
    (wrong_doors, "costs.grid", "def f():\n    import pandas"),
    (wrong_doors, "graph.masks", "import torch_pruning as tp"),
    (wrong_doors, "search.x", "import rare_library"),
    (too_long, "costs.x", "x = 1\n" * (MODULE_LINES + 1)),
    (too_long, "costs.x", LONG),
    (bad_manners, "costs.utils", ""),
    (bad_manners, "costs.x", "from math import *"),
    (bad_manners, "costs.x", "eval('1')"),
    (bad_manners, "costs.x", "print(1)"),
    (untyped_mappings, "costs.x", "class CostGrid:\n    rows: Mapping[str, Any]"),
    (untyped_mappings, "costs.x", "def macs(layer: dict[str, Any]) -> float: ..."),
    (says_nothing, "costs.x", "found = 1"),
    (says_nothing, "costs.x", "def f(rest): ..."),
    (says_nothing, "costs.x", "[one.name for one in layers]"),
    (tunnels, "costs.x", "def f(**options):\n    return dict(**options)"),
    (wrong_exports, "costs.x", "x = 1"),
    (wrong_exports, "costs.x", "__all__ = ['y']\nx = 1"),
    (wrong_exports, "costs.x", "__all__ = ['x', 'x']\nx = 1"),
    (wrong_exports, "costs.x", "__all__ = ['_x']\n_x = 1"),
    (undocumented, "costs.x", "x = 1"),
]


@pytest.mark.parametrize(("rule", "name", "source"), LEDGER)
def test_the_rule_catches(rule: Rule, name: str, source: str) -> None:
    assert list(rule(Module(name, source)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_well_behaved_module_passes(rule: Rule) -> None:
    good = '"""Good."""\nimport math\nimport numpy as np\nfrom amcsearch.core import Cost\n__all__ = ["f"]\n'
    body = '    """Long.\n' + "\n" * 50 + '    """\n    return math.pi\n'
    assert not list(rule(Module("costs.x", f"{good}def f() -> float:\n{body}")))
