"""Paths as people write them: home, variables and relative paths mean the same wherever one can be given."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from fewshot import open_banks, read_records
from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.datasets import folder, glyphs
from fewshot.experiment.config import config_hash
from fewshot.experiment.paths import absolute_paths, expand_configuration, expand_home

TEST = ("protocol.common.episodes=2", "protocol.common.query=2")
QUICK = ("algorithm=nearest", "way=2", "validation.query=2", "recipe=none", "logger=none", "protocol=common", *TEST)
OWN = ("dataset=folder", "dataset.reader.size=4", "dataset.reader.fractions=[0.34,0.33,0.33]")
FORMS = ("~/{}", "$PLACE/{}", "${{oc.env:PLACE}}/{}")


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, which $PLACE names too."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("PLACE", str(path))
    monkeypatch.delenv("NOWHERE", raising=False)
    return path


def images(root: Path, seed: int = 0) -> Path:
    """Six classes of four images."""
    random = np.random.RandomState(seed)
    for number in range(24):
        place = root / f"class {number // 4}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (5, 5, 3)).astype(np.uint8)).save(place)
    return root


def names_below(*places: Path) -> set[str]:
    return {path.name for place in places for path in place.rglob("*")}


@pytest.mark.parametrize("form", ["~/a", "$PLACE/a", "${PLACE}/a"])
def test_a_path_is_expanded(home: Path, form: str) -> None:
    assert expand_path(form) == home / "a" == expand_path(Path(form)) == expand_path(home / "a")


def test_another_users_home_is_known(home: Path) -> None:
    assert expand_path("~root/a") == Path(os.path.expanduser("~root")) / "a"


def test_what_exists_as_it_is_written_and_what_only_looks_alike_stays(home: Path) -> None:
    (home / "cost$NOWHERE").mkdir()
    assert expand_path("~/cost$NOWHERE") == home / "cost$NOWHERE"
    for path in (home / "cost$NOWHERE", home / "a~", home / "5$", home / "$5", Path("a/~/b")):
        assert expand_path(path) == path


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("$NOWHERE/a", "the environment variable NOWHERE is not defined"),
        ("x/$NOWHERE", "the environment variable NOWHERE is not defined"),
        ("~no-such-user/a", "there is no user no-such-user; for a file of this name write its whole path"),
    ],
)
def test_what_cannot_be_expanded_is_named_in_one_line(home: Path, path: str, match: str) -> None:
    with pytest.raises(FewshotError, match=re.escape(match)):
        expand_path(path)
    with pytest.raises(FewshotError, match=f"^runs: .*{re.escape(match)}"):
        expand_configuration(OmegaConf.create({"runs": path}))


def test_the_paths_of_a_configuration_are_expanded_and_no_other_text(home: Path) -> None:
    cfg = OmegaConf.create(
        {
            "data_dir": "${oc.env:PLACE}/~",
            "runs": "~/runs",
            "reader": {"root": "${data_dir}/x", "csv": ["$PLACE/1", 2, None], "cache": "???", "folder": "${no.where}"},
            "out": "$PLACE/${runs}",
            "again": "${reader}",
            "title": "$k$ ~",
            "own": ["~/a", "$PLACE"],
        }
    )
    expand_configuration(cfg)
    assert (cfg.data_dir, cfg.runs, cfg.out) == (f"{home}/~", f"{home}/runs", f"{home}/{home}/runs")
    assert cfg.again.root == f"{home}/~/x" and list(cfg.reader.csv) == [f"{home}/1", 2, None]
    assert (cfg.title, list(cfg.own)) == ("$k$ ~", ["~/a", "$PLACE"])
    cfg.data_dir = "elsewhere"
    assert cfg.reader.root == "elsewhere/x"  # what refers to another key still does


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a\\${PLACE}", "a${PLACE}"),
        ("a\\\\${oc.env:PLACE}", "a\\{home}"),
        ("lit$PLACE", "lit$PLACE"),  # it exists
        ("$PLACE/\\${PLACE}", "{home}/${PLACE}"),
    ],
)
def test_a_literal_variable_stays_also_where_another_path_refers_to_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lit$PLACE").mkdir()
    cfg = OmegaConf.create({"data_dir": written, "cache": "${data_dir}/banks"})
    expand_configuration(cfg)
    expand_configuration(cfg)
    meant = meant.replace("{home}", str(home))
    assert (cfg.data_dir, cfg.cache) == (meant, f"{meant}/banks")
    saved = absolute_paths({"name": meant, "of": [meant]})
    assert OmegaConf.to_container(OmegaConf.create(saved), resolve=True) == {"name": meant, "of": [meant]}


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("runs=~/a", "runs={}/a"),
        ("runs=~", "runs={}"),
        ("dataset.reader.root=~/a,~/b", "dataset.reader.root={}/a,{}/b"),
        ("runs=[~/a,b~]", "runs=[{}/a,b~]"),
        ("--config-dir=~/a", "--config-dir={}/a"),
        ("hydra.sweep.dir=~/a", "hydra.sweep.dir={}/a"),
        ("runs='~/a b'", "runs='~/a b'"),
        ('run_dir="x,~/b"', 'run_dir="x,~/b"'),
        ("runs=~/a,'b,~/c'", "runs={}/a,'b,~/c'"),
        ("layout.title=~", "layout.title=~"),
        ("~protocol.common.steps", "~protocol.common.steps"),
        ("x=a~b", "x=a~b"),
    ],
)
def test_a_home_folder_on_the_command_line_needs_no_quotes(home: Path, word: str, expanded: str) -> None:
    assert expand_home(word) == expanded.replace("{}", str(home))


def test_the_tools_take_such_paths_everywhere(call: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = itertools.cycle(FORMS)

    def at(name: str) -> str:
        return next(forms).format(name)

    images(home / "birds")
    shutil.copy(home / "birds/class 0/0.png", home / "birds/class 0/00.png")  # so that a list differs from the folders
    rows = [f"class {number},{split}" for number, split in enumerate(("train", "val", "test") * 2)]
    (home / "list.csv").write_text("class,split\n" + "\n".join(rows))
    monkeypatch.setenv("FEWSHOT_DATA", at("data"))
    own = (*OWN, "dataset.reader.on_overlap=count")
    calls = (
        ("prepare", *own, f"source={at('birds')}", f"sheet={at('sheet.png')}"),
        ("train", *QUICK, *own, f"dataset.reader.root={at('birds')}", f"dataset.reader.csv={at('list.csv')}",
         f"run_dir={at('run')}", f"copy_records_to={at('records')}"),
        ("train", "-m", *QUICK, *own, "seed=0", f"dataset.reader.root={at('birds')}", f"runs={at('sweep')}"),
        ("train", f"resume={at('run')}"),
        ("evaluate", f"run={at('run')}", *TEST, f"out={at('test')}", f"root={at('birds')}"),
        ("table", f"runs={at('run')}", f"out={at('table.md')}"),
        ("report", f"runs={at('run')}", f"out={at('report.html')}", f"pictures={at('pictures')}"),
    )  # fmt: skip
    for tool, *words in calls:
        done = call(tool, *words)
        assert done.code == 0, (tool, done.err)
    made = {path.name for path in home.iterdir()}
    assert {"data", "sheet.png", "run", "records", "sweep", "test", "table.md", "report.html", "pictures"} <= made
    assert not [name for name in names_below(home, Path.cwd()) if name[0] in "~$"]
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("word", ["runs=$NOWHERE/a", "run_dir='~no-such-user/a'"])
def test_a_variable_that_is_not_defined_is_one_line(call: Any, home: Path, word: str) -> None:
    done = call("train", *QUICK, word)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert re.match(r"error: (runs|run_dir): .*(NOWHERE is not defined|no user no-such-user)", done.err)
    assert not list(Path.cwd().iterdir())


def test_the_python_functions_take_such_paths(home: Path, call: Any) -> None:
    images(home / "birds")
    banks = folder.read_folder("~/birds", "$PLACE/banks", size=4, fractions=(0.34, 0.33, 0.33))
    made = banks["train"].folder
    assert made is not None and made.parent == home / "banks"
    assert open_banks(f"~/banks/{made.name}")["train"].fingerprint == banks["train"].fingerprint
    assert glyphs.read_glyphs("~/banks", examples=1, size=8)["val"].shape == (1, 8, 8)
    assert call("train", *QUICK, "runs=~/runs").code == 0
    assert len(read_records("$PLACE/runs")) == 1
    assert not names_below(home, Path.cwd()) & {"~", "$PLACE"}


def test_a_variable_may_hold_another_and_a_run_goes_on_there(
    call: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "data").symlink_to(os.environ["FEWSHOT_DATA"])  # where the glyphs are drawn already
    monkeypatch.setenv("FEWSHOT_DATA", "${PLACE}/data")
    monkeypatch.setenv("RUNS", "$PLACE/runs")
    assert call("train", *QUICK, "runs=${oc.env:RUNS}").code == 0
    (run,) = (home / "runs").glob("*/*/config.yaml")
    assert OmegaConf.load(run).data_dir == f"{home}/data"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("evaluate", f"run={run.parent}", *TEST, "protocol.common.query=1").code == 0
    assert not list(Path.cwd().iterdir())


def test_a_key_that_a_file_only_wishes_for_is_named(call: Any, tmp_path: Path) -> None:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\nruns: ${SCRATCH}/runs\n")
    done = call("train", *QUICK, "--config-dir", "conf", "experiment=mine")
    assert done.code == 1 and done.err.count("\n") == 1
    assert "runs: Interpolation key 'SCRATCH' not found; an environment variable is ${oc.env:SCRATCH}" in done.err


def test_a_run_of_relative_paths_works_from_another_folder(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "birds")
    done = call("train", *QUICK, *OWN, "dataset.reader.root=birds", "data_dir=data", "runs=runs", "run_dir=run")
    assert done.code == 0, done.err
    saved = OmegaConf.load("run/config.yaml")
    assert saved.dataset.reader.root == f"{tmp_path}/birds" and saved.dataset.reader.cache == f"{tmp_path}/data/banks"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("evaluate", "run=../run", *TEST, "protocol.common.query=1").code == 0
    shutil.rmtree("../run/tests")
    done = call("train", "resume=../run")
    assert done.code == 0, done.err
    assert not list(Path.cwd().iterdir())


def test_where_files_lie_is_no_part_of_what_a_run_is() -> None:
    def config(place: str, name: str = "a.csv") -> dict[str, Any]:
        reader = {"root": f"{place}/x", "cache": place, "csv": f"{place}/{name}", "size": 4}
        return {"dataset": {"reader": reader}, "features": {"reader": {"folder": f"{place}/features-1"}}, "runs": place}

    assert config_hash(config("/a")) == config_hash(config("b")) != config_hash(config("/a", "b.csv"))


def test_a_list_that_is_relative_to_its_images_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.csv").touch()
    config = {"data_dir": "d", "name": "d", "reader": {"csv": "there.csv", "root": "r"}, "own": {"csv": "here.csv"}}
    assert absolute_paths(config) == {
        "data_dir": f"{tmp_path}/d",
        "name": "d",
        "reader": {"csv": "there.csv", "root": f"{tmp_path}/r"},
        "own": {"csv": f"{tmp_path}/here.csv"},
    }


def test_the_paths_of_a_persons_own_class_are_saved_and_counted_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("best.pth").touch()
    own = {"_target_": "mine.Net", "cache": "lru", "weights": "best.pth", "inner": [{"folder": "best.pth"}, 3]}
    config = {"backbone": {"network": own}, "dataset": {"reader": {"root": "a"}}}
    saved = absolute_paths(config)
    network = saved["backbone"]["network"]
    assert (network["weights"], network["inner"][0]["folder"]) == (f"{tmp_path}/best.pth",) * 2
    assert network["cache"] == "lru" and saved["dataset"]["reader"]["root"] == f"{tmp_path}/a"
    assert config_hash(saved) == config_hash(config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("best.pth").touch()
    assert config_hash(saved) != config_hash(config)  # the same words name another file here


def test_weights_are_a_file_or_a_name_of_torchvisions_and_their_place_is_no_part_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.pth").touch()
    network = {"_target_": "fewshot.TorchVision", "weights": "here.pth"}
    config = {"network": network, "features": {"weights": "IMAGENET1K_V1"}}
    saved = absolute_paths(config)
    assert saved["network"]["weights"] == f"{tmp_path}/here.pth"
    assert saved["features"] == {"weights": "IMAGENET1K_V1"}
    other = config | {"network": network | {"weights": "other.pth"}}
    assert config_hash(saved) == config_hash(config) != config_hash(other)


@pytest.fixture
def moved(call: Any, tmp_path: Path) -> Path:
    """Where the images of the run `run` went, as a copy with other times."""
    images(tmp_path / "birds")
    rows = [f"class {number},{split}" for number, split in enumerate(("train", "val", "test") * 2)]
    (tmp_path / "birds/mine.csv").write_text("class,split\n" + "\n".join(rows))
    own = ("dataset.reader.root=birds", "dataset.reader.csv=birds/mine.csv", "data_dir=data")
    assert call("train", *QUICK, *OWN, *own, "run_dir=run").code == 0
    shutil.copytree(tmp_path / "birds", tmp_path / "moved", copy_function=shutil.copy)
    shutil.rmtree(tmp_path / "birds")
    return tmp_path / "moved"


def test_a_run_whose_images_moved_is_told_where_they_lie(call: Any, moved: Path) -> None:
    lost = call("evaluate", "run=run", *TEST)
    assert lost.code == 1 and "birds: no such file or folder; name another, by dataset.reader.root=" in lost.err
    for words in (("evaluate", "run=run", *TEST), ("train", "resume=run")):
        done = call(*words, f"root={moved.name}")
        assert done.code == 0, done.err
    shutil.move("data", "data2")
    shutil.rmtree("run/tests")
    done = call("train", "resume=run", "root=moved", "data_dir=data2")
    assert done.code == 0, done.err
    assert not Path("data").exists() and call("evaluate", "run=run", *TEST, "protocol.common.query=1").code == 0


def test_what_is_not_where_a_runs_images_lie_is_refused_in_one_line(call: Any, moved: Path, tmp_path: Path) -> None:
    shutil.copytree(moved, tmp_path / "other")
    shutil.copy(images(tmp_path / "new", seed=1) / "class 0/0.png", tmp_path / "other/class 0/0.png")
    for words, said in (
        (("evaluate", "run=run", "root=other"), "this run is on other data"),
        (("train", "resume=run", "root=other"), "this run is on other data"),
        (("evaluate", "run=run", "root=nowhere"), "root=nowhere: no such file or folder"),
        (("evaluate", "run=run", "data_dir=nowhere"), "data_dir=nowhere: no such folder"),
        (("evaluate", "run=run", "root=other", "dataset=glyphs"), "of another dataset set dataset.reader.root"),
        (("train", *QUICK, "root=other"), "is for resume=<run folder>; of a new run set dataset.reader.root"),
    ):
        done = call(*words)
        errors = [line for line in done.err.splitlines() if "error" in line]
        assert done.code == 1 and [said in line for line in errors] == [True], done.err


def test_a_run_on_made_images_has_none_that_move(call: Any) -> None:
    assert call("train", *QUICK, "run_dir=run").code == 0
    done = call("evaluate", "run=run", "root=.")
    assert done.code == 1 and "root=.: glyphs are made, not read; leave it out" in done.err


def test_the_images_behind_features_are_found_where_they_moved(call: Any, moved: Path) -> None:
    quick = [f"features.settings.{word}" for word in ("epochs=1", "way=2", "query=2", "episodes=2")]
    own = ("dataset.reader.root=moved", "dataset.reader.csv=moved/mine.csv", "data_dir=data", "dataset.reader.size=16")
    words = ("algorithm=nearest_mean", "features=conv4", *quick, *QUICK[1:], OWN[0], OWN[2], *own)
    done = call("train", *words, "run_dir=features")
    assert done.code == 0, done.err
    moved.rename("again")
    done = call("evaluate", "run=features", *TEST, "protocol.common.query=1", "root=again")
    assert done.code == 0, done.err
