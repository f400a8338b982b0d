"""The Markdown files: size, links, keys, commands, and their walkthroughs followed to the letter on little data."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import fewshot.experiment.config  # noqa: F401 has the schemas that conf/ begins with
from fewshot.core.paths import CONF

ROOT = Path(__file__).resolve().parent.parent
README, KEYS, ALGORITHMS, BACKBONES, DATA = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md", "conf/README.md", "fewshot/algorithms/README.md", "fewshot/backbones/README.md",
        "fewshot/data/README.md",
    )
)  # fmt: skip
PAGES = [*ROOT.glob("*.md")]
for top in ("conf", "examples", "fewshot", "results", "tests"):
    PAGES += sorted((ROOT / top).rglob("*.md"))
QUICK = (
    "train.steps=2", "train.meta_batch=2", "train.validate_every=1", "validation.query=2", "validation.episodes=2",
    "logger=none", "protocol=common", "protocol.common.query=2", "protocol.common.episodes=3", "runs=runs",
    "data_dir=data",
)  # fmt: skip
SMALL = "backbone.network.filters=4"


def section(page: str, title: str) -> str:
    """The text below a heading of second or third order, up to the next heading."""
    return re.split(r"^##", re.split(rf"^###? {title}$", page, flags=re.MULTILINE)[1], flags=re.MULTILINE)[0]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def write_files(text: str) -> list[str]:
    """Write each block of a section below the name that stands before it; the names."""
    files = re.findall(r"`(mine/[^`]+)`[^`]*```\w+\n(.*?)```", text, re.DOTALL)
    for name, content in files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    return [Path(name).name for name, _ in files]


def own_commands(text: str) -> list[tuple[str, list[str]]]:
    """(tool, words) of a section's commands that add the folder of one's own to Python's path."""
    lines = re.findall(r"^PYTHONPATH=mine python tools/(\w+)\.py (.*)$", text, re.MULTILINE)
    return [(tool, shlex.split(words)) for tool, words in lines]


def documented_commands() -> list[tuple[str, str]]:
    """(tool, words) of every command of the tools in README.md, conf/ and fewshot/."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if "results" not in page.parts)
    # Within a paragraph a command may go on in the next line.
    found = re.findall(r"`(?:\w+=\w+ )?python\s+tools/(\w+)\.py\s+([^`]+)`", pages)
    found += re.findall(r"^[^`|\n]*tools/(\w+)\.py (.*)$", "\n".join(blocks(pages, "(?:sh)?")), re.MULTILINE)
    return list(dict.fromkeys((tool, " ".join(words.split())) for tool, words in found))


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(tmp_path / "mine")
    yield
    for name in ("prototypes", "arrays", "small"):
        sys.modules.pop(name, None)


def test_the_readme_is_short_and_its_sh_blocks_are_the_quickstart_and_the_tests() -> None:
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1200
    quickstart, tests = blocks(README, "sh")
    assert "tools/train.py -m" in quickstart
    assert "pytest" in tests
    assert (ROOT / "results/glyphs_episode.png").stat().st_size < 60_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings], link


def load_yaml(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key != "networks"
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize(
    ("tool", "title"),
    [
        ("train", "Train"), ("evaluate", "Test a run"), ("predict", "Use a run"), ("table", "Tables and reports"),
        ("report", "Tables and reports"), ("prepare", "Data and features"), ("pretrain", "Data and features"),
        ("bench", "Speed"),
    ],
)  # fmt: skip
def test_every_key_of_a_tool_is_described_with_its_default(tool: str, title: str) -> None:
    elsewhere = {("bench", "networks"), ("report", "format"), ("pretrain", "device")}  # in words, or as in training
    defaults = described_defaults(title)
    for key, value in flatten(load_yaml(CONF / f"{tool}.yaml")).items():
        if key.split(".")[0] in ("defaults", "hydra"):
            continue
        assert key in defaults, f"{key} of conf/{tool}.yaml has no row in conf/README.md"
        if (tool, key) not in elsewhere and not str(value).startswith(("$", "?")):
            assert_default(defaults[key], value, key)


def described_defaults(title: str) -> dict[str, str]:
    """The second column of a section's tables, by the keys in the first."""
    defaults: dict[str, str] = {}
    for keys, default in re.findall(r"^\| (`[^|]+`) \| ([^|]*?) ?\| ", section(KEYS, title), re.MULTILINE):
        defaults |= dict.fromkeys(re.findall(r"`([^`]+)`", keys), default)
    return defaults


def assert_default(described: str, value: Any, key: str) -> None:
    assert re.fullmatch("`[^`]+`", described), f"{key}: {described}"
    assert OmegaConf.create(f"value: {described.strip('`')}").value == value, key


@pytest.mark.parametrize(
    ("file", "part", "title", "elsewhere"),
    [
        ("protocol/common", "", "Protocols", {"rows"}),
        ("features/base/extractor", "features.settings", "Feature extractors", {"way", "shot", "query", "episodes"}),
    ],
)
def test_every_default_of_a_protocol_and_of_an_extractor_is_described(
    file: str, part: str, title: str, elsewhere: set[str]
) -> None:
    values = load_yaml(CONF / f"{file}.yaml")
    for name in filter(None, part.split(".")):
        values = values[name]
    defaults = described_defaults(title)
    for key, value in values.items():
        if key not in elsewhere and not str(value).startswith("$"):
            full = f"{part or 'protocol.common'}.{key}"
            assert_default(defaults[full], value, full)


@pytest.mark.parametrize(
    ("group", "part", "title"),
    [
        ("algorithm", "algorithm.learner", "Algorithms"), ("backbone", "network", "Backbones"),
        ("dataset", "reader", "Datasets"), ("dataset/base", "augment", "Datasets"),
        ("features/base", "features.settings", "Feature extractors"),
    ],
)  # fmt: skip
def test_every_key_of_a_group_is_described(group: str, part: str, title: str) -> None:
    described = {key.rsplit(".", 1)[-1] for key in re.findall(r"`([\w.]+)`", section(KEYS, title))} | {"_target_"}
    for path in (CONF / group).glob("*.yaml"):
        values = load_yaml(path)
        for name in part.split("."):
            values = values.get(name, {})
        for key in flatten(values):
            assert key.rsplit(".", 1)[-1] in described, f"{path.name}: {key}"


def test_every_documented_command_composes(own_modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (ALGORITHMS, BACKBONES, DATA):
        write_files(text)
    commands = documented_commands()
    assert len(commands) > 30
    own = f"hydra.searchpath=[file://{tmp_path}/mine/conf]"  # what --config-dir adds
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for tool, text in commands:
            words = [word for word in shlex.split(re.sub(r"<[^>]*>", "run", text)) if "=" in word]
            # Of a sweep, its first run.
            words = [re.sub(r"^(\w+=[^,\[{]+),.*", r"\1", word) for word in words]
            compose(tool, [*words, own])


def test_the_python_of_the_readme_runs(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = blocks(README, "python")
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    (tmp_path / "data").symlink_to(data_dir)
    monkeypatch.chdir(tmp_path)
    for full, little in (("steps=1000", "steps=2"), ("episodes=600", "episodes=3")):
        assert full in program
        program = program.replace(full, little)
    exec(compile(program, "README.md", "exec"), {})
    *_, score, first, _, _, _, _ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"0\.\d+ ± 0\.\d+", score)
    assert first.startswith("['")


def test_an_algorithm_of_ones_own_learns_and_is_tested(call: Any, own_modules: None, data_dir: Path) -> None:
    text = section(ALGORITHMS, "Add an algorithm")
    assert write_files(text) == ["prototypes.py", "prototypes.yaml"]
    ((tool, words),) = own_commands(text)
    done = call(
        tool, *words, *QUICK, f"data_dir={data_dir}", "run_dir=run", "train.steps=40", "train.meta_batch=4",
        "train.outer_lr=0.01", "backbone.network.filters=16", "protocol.common.episodes=20", "train.validate_every=0",
        "train.select=last",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    record = json.loads(next(Path("run").rglob("record.json")).read_text())
    assert (record["algorithm"], record["protocol"]["adaptation_steps"]) == ("prototypes", 0)
    assert record["test"]["accuracy"] > 0.35  # 0.25 without training
    again = call("evaluate", "run=run", "protocol.common.query=1", "protocol.common.episodes=3")
    assert (again.code, again.err) == (0, "")


def test_a_network_of_ones_own_is_trained(call: Any, own_modules: None, data_dir: Path) -> None:
    text = section(BACKBONES, "Bring a network")
    assert write_files(text) == ["small.py", "small.yaml"]
    for number, (tool, words) in enumerate(own_commands(text)):
        done = call(tool, *words, *QUICK, f"data_dir={data_dir}", f"run_dir=run{number}")
        assert (done.code, done.err) == (0, "")
    records = [json.loads(path.read_text()) for path in sorted(Path().rglob("record.json"))]
    assert [record["backbone"] for record in records] == ["small.Small", "small"]
    assert [record["protocol"]["setting"] for record in records] == ["inductive"] * 2
    assert records[0]["test"] == records[1]["test"]


def test_a_network_of_features_gets_a_head_or_is_compared_as_it_is(
    call: Any, own_modules: None, data_dir: Path
) -> None:
    Path("mine").mkdir()
    Path("mine/small.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.AvgPool2d(7)\n\n\ndef other(width, *, n_classes): ...\n"
    )
    own = ("backbone=module", "backbone.target=small.make", "backbone.outputs=features", f"data_dir={data_dir}")
    for algorithm in ("algorithm=fomaml", "algorithm=nearest_mean"):
        done = call("train", algorithm, "features=none", *QUICK, *own)
        assert done.code == 0, done.err
    unnamed = call("train", "algorithm=maml", "backbone=module")
    assert unnamed.err == "error: backbone.target: has no value; set backbone.target=<value>\n"
    missing = call("train", "algorithm=maml", "backbone=module", "backbone.target=nowhere.Net", f"data_dir={data_dir}")
    assert missing.err == (
        "error: backbone.network._target_=nowhere.Net: No module named 'nowhere'; name what can be imported, and put "
        "its folder on PYTHONPATH\n"
    )
    mistyped = call("train", "algorithm=maml", "features=none", *QUICK, *own, "algorithm.learner._target_=small.makes")
    assert mistyped.err == "error: small.makes: small has no makes, did you mean make?\n"
    lacking = call("train", "algorithm=maml", *own, "backbone.target=small.other")
    assert lacking.err == (
        "error: backbone: other needs width and n_classes; add '+backbone.network.width=<value>' "
        "'+backbone.network.n_classes=${way}'\n"
    )


def test_a_dataset_of_ones_own_is_prepared_and_trained_on(call: Any, own_modules: None) -> None:
    text = section(DATA, "Add a dataset")
    assert write_files(text) == ["arrays.py", "arrays.yaml"]
    dice = np.random.RandomState(0)
    for split in ("train", "val", "test"):
        for number in range(6):
            file = Path(f"data/arrays/{split}/{number}.npy")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, dice.randint(0, 256, (5, 1, 28, 28)).astype(np.uint8))
    (prepare, train) = own_commands(text)
    done = call(prepare[0], *prepare[1], "data_dir=data")
    assert (done.code, done.err) == (0, "")
    assert "arrays, from arrays.read" in done.out
    done = call(train[0], *train[1], *QUICK, SMALL, "run_dir=run")
    assert (done.code, done.err) == (0, "")
    assert json.loads(next(Path("run").rglob("record.json")).read_text())["dataset"] == "arrays"
    for file in sorted(Path("data/arrays").rglob("*.npy")):
        np.save(file, np.load(file).repeat(2, axis=1))
    two = ("data_dir=data", "dataset.reader.cache=two", "plot=true", "run_dir=drawn")
    refused = call(train[0], *train[1], *QUICK, SMALL, *two)
    assert refused.err == "error: plot=true: examples are 2x28x28, and not images of 1 or 3 channels; leave plot out\n"
    assert not Path("drawn").exists()  # it is known before any training
    own = train[1][:-1]  # without the algorithm
    unnamed = call("train", *own, "algorithm=leo")
    assert (unnamed.code, unnamed.err.count("\n")) == (1, 1)
    assert "wants conf/features/arrays.yaml" in unnamed.err and "choose features=conv4" in unnamed.err
    features = Path("mine/conf/features/arrays.yaml")
    features.parent.mkdir()
    features.write_text((CONF / "features/glyphs.yaml").read_text())
    assert call("train", *own, "algorithm=leo", "--cfg", "job", "--package", "features.name").out == "conv4\n"


def test_the_name_and_the_class_are_all_that_an_algorithm_has_to_say(
    call: Any, own_modules: None, data_dir: Path
) -> None:
    write_files(section(ALGORITHMS, "Add an algorithm"))
    Path("mine/conf/algorithm/prototypes.yaml").write_text(
        "name: prototypes\nlearner:\n  _target_: prototypes.Prototypes\n  scale: 1.0\n"
    )
    own = ("--config-dir", "mine/conf", "algorithm=prototypes")
    shown = call("train", *own, "--cfg", "job", "--package", "train")
    assert (shown.code, shown.err) == (0, "")
    assert "outer_optimizer: adam" in shown.out
    done = call("train", *own, *QUICK, SMALL, f"data_dir={data_dir}", "run_dir=run")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("missing", ["predict"])  # tests/algorithms/test_learner.py has the others
def test_a_method_that_an_algorithm_lacks_is_named(call: Any, own_modules: None, data_dir: Path, missing: str) -> None:
    text = section(ALGORITHMS, "Add an algorithm").replace(f"def {missing}(", f"def other_{missing}(")
    write_files(text)
    ((tool, words),) = own_commands(text)
    done = call(tool, *words, *QUICK, SMALL, f"data_dir={data_dir}", "run_dir=run")
    assert done.err == f"error: algorithm.learner: Prototypes has no method {missing}; see `Learner`\n"
    assert not Path("run").exists()
