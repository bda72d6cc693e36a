"""Configurations: bad input is one line that names key, value and cure; good input survives a round trip."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch import config as cfg
from amcsearch.config.values import RESERVED
from amcsearch.config.yaml_text import parse_yaml, to_yaml
from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.limit import Limit
from amcsearch.costs.latency.rows import KEY_COLUMNS, row_key
from amcsearch.costs.latency.table import LatencyTable
from amcsearch.runs import TRIAL_COLUMNS
from amcsearch.training.recipe import Distillation, TrainingRecipe

SMALLEST = 'model: {factory: "a.b:net"}\ndata: {factory: "a.b:data"}\n'
CONFIGS = Path(__file__).parents[1] / "configs"
SEARCHES = sorted([*CONFIGS.glob("searches/*.yaml"), *CONFIGS.glob("sparsify/*.yaml")])


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "search.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def refusal(path, *overrides) -> str:
    with pytest.raises(BadInputError) as caught:
        cfg.load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_two_factories_are_enough(write):
    config = cfg.load(write(SMALLEST))
    assert (config.seed, config.search.agent, config.search.trials) == (0, "ddpg", 200)
    assert config.budget == {"macs": "0.5x"}
    assert config.recovery.finetune.distillation.temperature == 4.0
    assert config.data.splits.sizes() == {}
    assert config.model.pretrain is None


def test_the_example_of_the_design_loads(write):
    write("name: x86", "configs/devices/x86_server.yaml")
    text = """
name: digits-resnet20
seed: 0
model:
  {factory: "amcsearch.training.models:resnet20", kwargs: {num_classes: 10}, checkpoint: null,
   input_shape: [1, 32, 32], pretrain: {epochs: 6}}
data:    {factory: "amcsearch.training.data:digits", kwargs: {}, splits: {calibration: 512, search: 512}}
device:
  {profile: configs/devices/x86_server.yaml, table: latency_tables/NAME, channel_multiple: auto, threads: 1, batch: 1}
budget:  {latency_ms: 0.5x}
selection: {criterion: taylor}
recovery:
  bn_recalibration: true
  reconstruction: none
  finetune: {epochs: 5, learning_rate: 0.02, schedule: cosine, distillation: {temperature: 4.0, alpha: 0.7}}
search:  {agent: ddpg, trials: 200, reward: {name: accuracy}, objectives: null}
"""
    config = cfg.load(write(text))
    assert config.model.input_shape == (1, 32, 32)
    assert config.model.pretrain.epochs == 6
    assert config.recovery.reconstruction == "none"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("search: {trails: 3}", ["search.yaml:3", "unknown key search.trails", "did you mean 'trials'"]),
        ("serach: {}", ["unknown key serach", "did you mean 'search'"]),
        ("zzz: 1", ["unknown key zzz", "known: budget, data, device"]),
        ("search: {trials: many}", ["search.yaml:3", "search.trials = 'many'", "a whole number"]),
        ("search: {trials: 2.5}", ["search.trials = 2.5", "a whole number"]),
        ("search: {trials: true}", ["search.trials = true", "a whole number"]),
        ("search: {trials: 0}", ["search.trials = 0", "above 0"]),
        ("search: 3", ["search = 3", "a mapping of keys, some of agent, agent_params, baseline"]),
        ("budget: 0.5x", ["search.yaml:3", "budget = '0.5x'", 'such as {"macs": "0.5x"} or {"latency_ms": 2.5}']),
        ("budget: {macs:0.5x}", ["unknown key budget.macs:0.5x; write a space after its colon; expected 'macs'"]),
        ("budget: [macs]", ["budget = ['macs']", 'such as {"macs": "0.5x"}']),
        ("prune: {target: 0.5x}", ["prune.target = '0.5x'", 'such as {"macs": "0.5x"}']),
        ("sparsify: {target: 0.5x}", ["sparsify.target = '0.5x'", 'such as {"macs": "0.5x"}']),
        ("search: {max_pruning_ratio: 1.0}", ["search.max_pruning_ratio = 1.0", "below 1"]),
        ("search: {objectives: [accuracy]}", ["search.objectives", "at least 2"]),
        ("search: {objectives: [accuracy, speed]}", ["search.objectives.1 = 'speed'", "'latency_ms'"]),
        ("search: {baseline: 3}", ["search.baseline = 3", 'expected text; write it in quotes: "3"']),
        ("search: {baseline: [a]}", ["search.baseline = ['a']", "expected text"]),
        ("seed: -1", ["seed = -1", "at least 0"]),
        ("seed: null", ["seed = null", "a whole number"]),
        ("name: a/b", ["name = 'a/b'", "letters, digits"]),
        ("recovery: {bn_recalibration: yes}", ["recovery.bn_recalibration = 'yes'", "true or false"]),
        ("recovery: {finetune: {learning_rate: .nan}}", ["recovery.finetune.learning_rate = nan", "finite"]),
        ("recovery: {finetune: {distillation: {alpha: 2}}}", ["recovery.finetune.distillation.alpha = 2", "at most 1"]),
        ("recovery: {finetune: {distilation: null}}", ["recovery.finetune.distilation", "did you mean 'distillation'"]),
        ("budget: {latency: 0.5x}", ["unknown key budget.latency", "'latency_ms'"]),
        ("budget: {macs: 0.5y}", ["budget.macs = '0.5y'", "0.5x"]),
        ("budget: {macs: 1.5x}", ["budget.macs = '1.5x'", "(0x, 1x]"]),
        ("budget: {macs: 0x}", ["budget.macs = '0x'"]),
        ("budget: {macs: -3}", ["budget.macs = -3", "above 0"]),
        ("budget: {macs: true}", ["budget.macs = true"]),
        ("budget: {macs: 0.5}", ["search.yaml:3: budget.macs = 0.5 is an absolute number", "write 0.5x"]),
        ("prune: {target: {params: 0.25}}", ["search.yaml:3: prune.target.params = 0.25", "write 0.25x"]),
        ("prune: {target: {params: 1.5x}}", ["search.yaml:3: prune.target.params = '1.5x'", "(0x, 1x]"]),
        ("sparsify: {target: {bytes: 0.5}}", ["search.yaml:3: sparsify.target.bytes = 0.5", "write 0.5x"]),
        ("budget: {}", ["budget is empty", "objectives"]),
        ("device: {channel_multiple: 0}", ["device.channel_multiple = 0", "auto"]),
        ("device: {profile: nowhere.yaml}", ["search.yaml:3: device.profile", "nowhere.yaml does not exist"]),
        ("seed: 1\nseed: 2", ["search.yaml:4", "seed is given twice", "line 3"]),
        ("search: {trials: 3", ["search.yaml:", "not valid YAML"]),
        ("seed: *one", ["search.yaml:3", "aliases are not supported"]),
        ("seed: !!python/object:os.system x", ["search.yaml:3", "not supported"]),
        ("1: x", ["search.yaml:3", "key 1 must be text"]),
        ("name: [1, 2]\nseed: x", ["name = [1, 2]", "text", "and 1 more"]),
    ],
)
def test_bad_input_is_one_line(write, text, wanted):
    message = refusal(write(SMALLEST + text + "\n"))
    for part in wanted:
        assert part in message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "it holds nothing"),
        ("- a", "expected keys with values, such as seed: 0; it holds a list"),
        ("a text", "it holds text without a key"),
        ("data: {factory: a.b:c}", "model is missing"),
        ("model: {}\ndata: {factory: a.b:c}", "model.factory is missing"),
        (
            "model: {factory: nocolon}\ndata: {factory: a.b:c}",
            "model.factory = 'nocolon'; expected package.module:callable",
        ),
        ("model: {factory: net.py:make}\ndata: {factory: a.b:c}", "model.factory: file net.py does not exist"),
        ("model: {factory: a.b:c, checkpoint: w.pt}\ndata: {factory: a.b:c}", "w.pt does not exist"),
    ],
)
def test_bad_whole_files(write, text, wanted):
    assert wanted in refusal(write(text))


def test_checkpoint_and_pretraining_exclude_each_other(write):
    write("", "w.pt")
    text = "model: {factory: a.b:c, checkpoint: w.pt, pretrain: {epochs: 1}}\ndata: {factory: a.b:c}"
    assert "model: checkpoint and pretrain are both set" in refusal(write(text))


def test_missing_unreadable_and_binary_files(write, tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing.yaml")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    assert "UTF-8" in refusal(tmp_path / "binary.yaml")
    assert "too deeply" in refusal(write("a: " + "[" * 5000))


def test_the_folder_of_a_run_in_place_of_a_configuration_says_what_to_give(write, tmp_path):
    folder = write(SMALLEST, "my run/config.yaml").parent
    for text in (folder, "my run"):
        message = refusal(text)
        assert f"{folder} is the folder of a run" in message
        assert f"give '{folder}/config.yaml' -o '{folder}' --resume" in message
        assert f"`amcsearch report '{folder}'`" in message
    assert cfg.load(folder / "config.yaml").model.factory == "a.b:net"
    assert "is a folder, expected a configuration: a file" in refusal(tmp_path)


def test_overrides_replace_add_and_name_themselves(write):
    path = write(SMALLEST + "search: {trials: 7}\n")
    changed = cfg.load(
        path, ["search.trials=50", "budget.params=0.6x", "model.kwargs.width=8", "search.objectives=[accuracy, macs]"]
    )
    assert changed.search.trials == 50
    assert changed.budget == {"params": "0.6x"}
    assert changed.model.kwargs == {"width": 8}
    assert changed.search.objectives == ("accuracy", "macs")
    assert "--set search.trials=x: search.trials = 'x'" in refusal(path, "search.trials=x")
    assert "--set search.tirals=5: unknown key search.tirals" in refusal(path, "search.tirals=5")
    assert "--set trials: expected key.key=value" in refusal(path, "trials")
    units = "of ms for latency, of mJ for energy, of bytes also with one of B, kB, MB"
    assert f"or a number ({units}" in refusal(path, "budget.model_bytes=3KB")
    assert refusal(path, cfg.Override("search.trials=0", "--trials 0")).startswith("--trials 0: search.trials = 0; ")
    assert "search.trials is 7, it has no keys" in refusal(path, "search.trials.x=1")
    assert "not valid YAML" in refusal(path, "search.trials=[1")


def test_an_override_that_a_section_refuses_names_itself(write):
    """The message is of a section or of keys within a value that is replaced as a whole, and no line of the file."""
    path = write(SMALLEST + "recovery:\n  finetune:\n    epochs: 1\n")
    text = refusal(path, "recovery.finetune={epochs: -1}")
    assert text.startswith("--set recovery.finetune={epochs: -1}: recovery.finetune.epochs = -1")
    text = refusal(path, "model.checkpoint=search.yaml", "model.pretrain={epochs: 1}", "seed=3")
    assert text.startswith("--set model.checkpoint=search.yaml, --set model.pretrain={epochs: 1}: ")
    assert "checkpoint and pretrain are both set" in text


def test_numbers_with_exponents_are_numbers(write):
    text = SMALLEST + "recovery: {finetune: {learning_rate: 1e-3, weight_decay: 5E-4}}\n"
    assert cfg.load(write(text)).recovery.finetune.learning_rate == 1e-3


def test_limits_carry_the_key_they_were_written_under(write):
    text = (
        "budget: {latency_ms: 0.50x, macs: '1e6'}\nprune: {target: {bytes: 3000}}\nsparsify: {target: {params: .4x}}\n"
    )
    config = cfg.load(write(SMALLEST + text))
    assert config.limits == (
        Limit("latency_ms", 0.5, True, "budget.latency_ms"),
        Limit("macs", 1e6, False, "budget.macs"),
    )
    assert config.prune.limit == Limit("bytes", 3000.0, False, "prune.target.bytes")
    assert config.sparsify.limit == Limit("params", 0.4, True, "sparsify.target.params")
    dumped = cfg.dump(config)
    assert all(
        f"{{{each}}}" in dumped for each in ("latency_ms: 0.50x, macs: 1000000.0", "bytes: 3000.0", "params: .4x")
    )
    plain = cfg.load(write(SMALLEST))
    assert (plain.limits[0].written, plain.prune.limit, plain.sparsify.limit) == ("0.5x", None, None)


def test_files_are_found_beside_the_configuration_and_become_absolute(write, tmp_path, monkeypatch):
    path = write("model: {factory: 'net.py:make'}\ndata: {factory: a.b:c}\ndevice: {table: t/x}\n", "sub/search.yaml")
    write("make = dict", "sub/net.py")
    config = cfg.load(path)
    assert config.model.factory == f"{tmp_path}/sub/net.py:make"
    assert config.device.table == str(tmp_path / "t/x")  # no such table yet: this configuration may be for making it
    monkeypatch.chdir("/")
    write(cfg.dump(config), "elsewhere/copy.yaml")
    assert cfg.load(tmp_path / "elsewhere/copy.yaml") == config


def test_the_hash_follows_content_not_place(write, tmp_path):
    text = "model: {factory: a.b:c, checkpoint: w.pt}\ndata: {factory: 'd.py:make'}\ndevice: {table: t}\n"
    hashes = []
    for place in ("one", "two"):
        for name, content in (("w.pt", "weights"), ("d.py", "make = dict"), ("t/rows.csv", "1,2")):
            write(content, f"{place}/{name}")
        hashes.append(cfg.config_hash(cfg.load(write(text, f"{place}/search.yaml"))))
    assert hashes[0] == hashes[1]
    for name in ("w.pt", "d.py", "t/rows.csv"):
        write("changed", f"two/{name}")
        hashes.append(cfg.config_hash(cfg.load(tmp_path / "two/search.yaml")))
    hashes.append(cfg.config_hash(cfg.load(tmp_path / "two/search.yaml", ["seed=1"])))
    assert len(set(hashes)) == 5
    assert all(len(h) == 12 and int(h, 16) >= 0 for h in hashes)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{method: rigl, target: {sparsity: 0.8}}", {"sparsity": 0.8}),
        ("{target: {latency_ms: 0.5x}}", {"latency_ms": "0.5x"}),
        ("{target: {macs: 1000}}", {"macs": 1000.0}),
        ("{target: {bytes: 0.3x}, storage: csr}", {"bytes": "0.3x"}),
    ],
)
def test_sparsify_targets(write, text, wanted):
    config = cfg.load(write(f"{SMALLEST}sparsify: {text}"))
    assert config.sparsify.target == wanted
    assert cfg.from_mapping(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{target: {sparsity: 1.0}}", "between 0 and 1"),
        ("{target: {sparsity: 0.5x}}", "between 0 and 1"),
        ("{target: {macs: 2x}}", "(0x, 1x]"),
        ("{target: {}}", "got 0 entries"),
        ("{target: {macs: 0.5x, sparsity: 0.5}}", "got 2 entries"),
        ("{target: {accuracy: 0.9}}", "sparsify.target"),
        ("{methods: rigl}", "did you mean 'method'"),
        ("{target: {bytes: 2x}}", "(0x, 1x]"),
        ("{storage: zip}", "expected 'bitmap', 'csr' or 'run_length'"),
        ("{storage: dense}", "expected 'bitmap', 'csr' or 'run_length'"),
    ],
)
def test_bad_sparsify_sections_are_one_line(write, text, wanted):
    assert wanted in refusal(write(f"{SMALLEST}sparsify: {text}"))


def test_words_in_place_of_a_starting_policy(write):
    starts = {
        word: cfg.load(write(f"{SMALLEST}search: {{start: {word}}}")).search.start for word in ("exact", "none", "null")
    }
    assert starts == {"exact": "exact", "none": None, "null": None}
    assert cfg.load(write(SMALLEST)).search.start == "exact"
    assert "exactly" in refusal(write(f"{SMALLEST}search: {{start: exactly}}"))


def test_a_starting_policy_is_found_and_its_content_decides_the_hash(write, tmp_path):
    text = f"{SMALLEST}search: {{start: policy.json}}"
    assert "policy.json" in refusal(write(text))
    (tmp_path / "policy.json").write_text('{"a": 4}')
    one = cfg.load(write(text))
    assert one.search.start == str(tmp_path / "policy.json")
    before = cfg.config_hash(one)
    (tmp_path / "policy.json").write_text('{"a": 5}')
    assert cfg.config_hash(one) != before


def test_a_configuration_is_frozen(write):
    with pytest.raises(ValueError, match="frozen"):
        cfg.load(write(SMALLEST)).seed = 3


@pytest.mark.parametrize("path", SEARCHES, ids=lambda p: p.stem)
def test_shipped_searches_load_and_round_trip(path, tmp_path):
    config = cfg.load(path)
    (tmp_path / "config.yaml").write_text(cfg.dump(config))
    assert cfg.load(tmp_path / "config.yaml") == config
    cfg.check_priced(config, config.limits)
    assert callable(cfg.import_factory(config.model.factory))
    assert callable(cfg.import_factory(config.data.factory))


def test_recipes_have_the_fields_of_the_training_loop():
    of_the_jobs = {"augmentation"}  # imported by them
    of_finetuning = {"batch_norm"}  # which may be auto there
    names = {f.name for f in fields(TrainingRecipe)}
    assert set(cfg.RecipeConfig.model_fields) - of_the_jobs == names - of_finetuning
    assert of_finetuning <= set(cfg.FinetuneConfig.model_fields)
    assert {f.name: f.default for f in fields(Distillation)} == cfg.Distillation().model_dump()


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc01.-e ", max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_yaml_written_is_yaml_read(value):
    assert parse_yaml(to_yaml(value), "text")[0] == value


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        parse_yaml(text, "text")
    except BadInputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right


@given(st.dictionaries(st.sampled_from(["name", "seed", "model", "data", "budget", "search", "x"]), plain, max_size=5))
def test_any_mapping_is_valid_or_refused_in_one_line(data):
    try:
        config = cfg.from_mapping(data)
    except BadInputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert cfg.from_mapping(config.model_dump(mode="json")) == config


def test_the_schema_describes_every_key():
    schema = cfg.json_schema()
    assert set(schema["properties"]) == set(cfg.Config.model_fields)
    assert schema["required"] == ["model", "data"]
    json.dumps(schema)


def test_costs_without_a_model_name_the_key_and_the_cure(write):
    config = cfg.load(write(SMALLEST + "budget: {latency_ms: 0.5x}\ndevice: {table: null}"))
    with pytest.raises(BadInputError, match=r"budget.latency_ms needs a latency table.*table measure"):
        cfg.check_priced(config, config.limits)
    config = cfg.load(write(SMALLEST + "search: {objectives: [accuracy, energy_mj]}"))
    with pytest.raises(BadInputError, match=r"search.objectives needs device.profile"):
        cfg.check_priced(config, config.limits)


# Factories.


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("nocolon", "expected package.module:callable"),
        ("no_such_package.models:net", "no module named 'no_such_package'"),
        ("math.nothing:net", "importing it raised ModuleNotFoundError|no module named 'math.nothing'"),
        ("math:squrt", "did you mean 'sqrt'"),
        ("math:pi", "'pi' is a float, expected a callable"),
        ("nowhere/net.py:make", "file nowhere/net.py does not exist"),
    ],
)
def test_factories_that_cannot_be_imported(spec, wanted):
    with pytest.raises(BadInputError, match=wanted) as caught:
        cfg.import_factory(spec)
    assert "\n" not in str(caught.value)


def test_a_factory_in_a_file_may_import_its_neighbours(write, tmp_path):
    write("VALUE = 41", "folder/cfgtest_neighbour.py")
    path = write("from cfgtest_neighbour import VALUE\ndef make(more): return VALUE + more", "folder/cfgtest_net.py")
    assert cfg.call_factory(f"{path}:make", {"more": 1}, "model.factory") == 42


def test_files_that_fail_to_import(write):
    for name, text, wanted in (
        ("cfgtest_a.py", "import no_such_thing", "raised ModuleNotFoundError"),
        ("cfgtest_b.py", "def broken(:", "raised SyntaxError"),
        ("cfgtest_c.py", "raise SystemExit(3)", "raised SystemExit: 3"),
        ("json.py", "make = dict", "belongs to another module"),
        ("sys.py", "make = dict", "belongs to another module .built.in"),
        ("has-dash.py", "make = dict", "no module name"),
    ):
        with pytest.raises(BadInputError, match=wanted):
            cfg.import_factory(f"{write(text, name)}:make")


def test_what_a_factory_raises_is_one_line_and_keeps_its_cause():
    with pytest.raises(BadInputError, match=r"data.factory: .*'json:loads' raised JSONDecode") as caught:
        cfg.call_factory("json:loads", {"s": "{\n1"}, "data.factory")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


@dataclass(frozen=True)
class Agent:
    episodes: int = 10
    decay: float = 0.95
    hidden: tuple[int, ...] = (300, 300)

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise BadInputError(f"episodes = {self.episodes}, must be at least 1")


def test_parameters_build_a_dataclass():
    agent = cfg.build(Agent, {"decay": 1, "hidden": [8, 8]}, "search.agent_params")
    assert agent == Agent(10, 1.0, (8, 8))


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"epsiodes": 3}, "search.agent_params.epsiodes is unknown; did you mean 'episodes'"),
        ({"zzz": 3}, "parameters: episodes, decay, hidden"),
        ({"episodes": "x"}, "search.agent_params.episodes = 'x'; expected a whole number"),
        ({"hidden": [1, "y"]}, "search.agent_params.hidden.1 = 'y'; expected a whole number"),
        ({"episodes": 0}, "search.agent_params: episodes = 0, must be at least 1"),
    ],
)
def test_bad_parameters_list_the_fields(params, wanted):
    with pytest.raises(BadInputError) as caught:
        cfg.build(Agent, params, "search.agent_params")
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pick_names_the_nearest():
    assert cfg.pick({"ddpg": 1}, "ddpg", "search.agent") == 1
    with pytest.raises(
        BadInputError, match=r"search.agent = 'ddgp' is unknown; did you mean 'ddpg'\?; known: ddpg, tpe"
    ):
        cfg.pick({"ddpg": 1, "tpe": 2}, "ddgp", "search.agent")


# Devices on disk.


def test_a_latency_table_survives_the_disk(tmp_path):
    layer = LayerSpec("conv", LayerKind.CONV, 8, 16, (3, 3), (1, 1), (1, 1), in_size=(32, 32), out_size=(32, 32))
    row = dict(zip(KEY_COLUMNS, ("net", *row_key(layer), "Conv"), strict=True))
    row |= {"count": 1.0, "latency_ms": 0.25, "mad_ms": 0.001, "samples": 9, "source": "profile"}
    entry = {
        "constant_ms": np.float64(0.01),
        "calibration": {"profile_scale": 1e-05},
        "residency": {0.5: 0.125},
        "channel_multiple": np.int64(8),
        "accuracy": None,
    }
    info = {"provenance": {"cpu": "a CPU", "ort_version": "1.20", "threads": 1}, "networks": {"net": entry}}
    table = LatencyTable.from_mapping(pd.DataFrame([row]), info)
    cfg.write_latency_table(table, tmp_path / "deep" / "table")
    again = cfg.read_latency_table(tmp_path / "deep" / "table")
    before, after = table.bind("net"), again.bind("net")
    assert after.predict([layer]) == before.predict([layer]) == pytest.approx(0.26)
    assert (after.constant, after.channel_multiple) == (0.01, 8)
    assert again.networks["net"].calibration.profile_scale == 1e-05
    assert after.joint(np.array([[1.0, 1.0]])) == before.joint(np.array([[1.0, 1.0]])) == 0.0625
    assert sorted(p.name for p in (tmp_path / "deep" / "table").iterdir()) == ["device.yaml", "rows.csv"]
    (tmp_path / "deep" / "table" / "rows.csv").unlink()
    (tmp_path / "else").mkdir()
    with pytest.raises(BadInputError, match=r"else is no latency table: it has none of rows\.csv, device\.yaml; give"):
        cfg.read_latency_table(tmp_path / "else")  # not a word of measuring into a folder of something else
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="file is a file, and a latency table is a folder"):
        cfg.read_latency_table(tmp_path / "file")
    with pytest.raises(BadInputError, match=r"has no rows\.csv; make it again with `amcsearch table measure"):
        cfg.read_latency_table(tmp_path / "deep" / "table")
    with pytest.raises(BadInputError, match=r"tabel does not exist; .*'table'.* `amcsearch table measure CONFIG -o"):
        cfg.read_latency_table(tmp_path / "deep" / "tabel")


def test_the_shipped_table_is_written_as_it_was_read(tmp_path):
    shipped = Path(__file__).parents[1] / "latency_tables" / "x86_epyc_avx512"
    cfg.write_latency_table(cfg.read_latency_table(shipped), tmp_path)
    for name in ("device.yaml", "rows.csv"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_a_table_cannot_be_written_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot write latency table"):
        cfg.write_latency_table(None, tmp_path / "file" / "table")


def test_device_profiles_name_their_file(tmp_path):
    with pytest.raises(BadInputError, match=r"cannot read .*nothing\.yaml"):
        cfg.read_device(tmp_path / "nothing.yaml")
    (tmp_path / "device.yaml").write_text("no_such_key: 1\n")
    with pytest.raises(BadInputError, match=r"device\.yaml: .*no_such_key"):
        cfg.read_device(tmp_path / "device.yaml")


# Names of one's own.


def test_a_file_beside_the_configuration_becomes_absolute_and_counts_by_content(write, tmp_path):
    mine = write("class Mine: ...", "mine.py")
    path = write(SMALLEST + "search: {agent: 'mine.py:Mine'}\ndevice: {costs: {mib: 'mine.py:Mine'}}\n")
    config = cfg.load(path)
    assert config.search.agent == f"{mine}:Mine"
    assert config.device.costs["mib"].model == f"{mine}:Mine"
    before = cfg.config_hash(config)
    assert cfg.config_hash(cfg.from_mapping(config.model_dump(mode="json"))) == before
    mine.write_text("class Mine:\n    changed = True\n")
    assert cfg.config_hash(config) != before


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("search: {agent: 'nowhere.py:Mine'}", "search.yaml:3: search.agent: file nowhere.py does not exist"),
        (
            "budget: {mib: 0.5x}",
            "unknown key budget.mib; expected 'macs', 'params', 'latency_ms', 'energy_mj', 'model_bytes' or "
            "'peak_memory_bytes'; ",
        ),
        ("device: {costs: {macs: 'math:sqrt'}}", "'macs' cannot name a cost of your own"),
        ("device: {costs: {Big: 'math:sqrt'}}", "'Big' cannot name a cost of your own"),
        ("device: {costs: {accuracy_int8: 'math:sqrt'}}", "'accuracy_int8' cannot name a cost of your own"),
        ("device: {costs: {mib: nocolon}}", "device.costs.mib.model = 'nocolon'; expected package.module:callable"),
    ],
)
def test_bad_names_of_ones_own(write, text, wanted):
    assert wanted in refusal(write(SMALLEST + text + "\n"))


def test_costs_of_ones_own_are_costs_everywhere(write):
    costs = "device: {costs: {mib: {model: 'math:sqrt', params: {x: 1}}}}\n"
    everywhere = "budget: {mib: 0.5x}\nsearch: {objectives: [accuracy, mib]}\nprune: {target: {mib: 0.5x}}\n"
    config = cfg.load(write(SMALLEST + costs + everywhere + "sparsify: {target: {mib: 0.5x}}\n"))
    assert config.budget == config.prune.target == config.sparsify.target == {"mib": "0.5x"}
    assert config.search.objectives == ("accuracy", "mib")
    assert config.device.costs["mib"].params == {"x": 1}


def test_no_column_of_the_trials_can_be_the_name_of_a_cost():
    assert set(TRIAL_COLUMNS) <= RESERVED


def test_pick_takes_what_is_not_in_the_registry_by_import():
    assert cfg.pick({"ddpg": 1}, "math:sqrt", "search.agent") is math.sqrt
    with pytest.raises(BadInputError, match=r"search.agent: factory 'math:squrt': .*did you mean 'sqrt'"):
        cfg.pick({"ddpg": 1}, "math:squrt", "search.agent")


def test_a_label_is_short_and_the_same_in_every_folder():
    assert cfg.label("/a/b/mine.py:Mine") == "mine.py:Mine"
    assert cfg.label("package.module:Mine") == "package.module:Mine"
    assert cfg.label("ddpg") == "ddpg"
