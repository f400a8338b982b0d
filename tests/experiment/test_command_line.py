"""The flags of a command line, and Hydra's habits."""

from __future__ import annotations

import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.experiment.cli import replace_unprintable
from fewshot.experiment.command_line import parse_flags
from fewshot.experiment.messages import format_error
from fewshot.experiment.sweeps import split_sweeps

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ("protocol=common", "protocol.common.episodes=2")
TEST = (*COUNTS, "protocol.common.setting=transductive")
TINY = ("train.steps=0", "validation.episodes=2", "backbone.network.filters=4", "protocol.common.query=1", *TEST)


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job"],
        ["--cfg", "all", "--resolve"],
        ["--cfg", "hydra"],
        ["--cfg", "job", "--package", "train"],
        ["--cfg=job", "-p", "protocol.common"],
        ["--info", "all"],
        ["--info"],
        ["-h", "algorithm=leo"],
        ["--hydra-help"],
        ["--version"],
        ["--config-name", "train", "--cfg", "job"],
        ["--shell-completion", "install=bash"],
        ["-sc", "uninstall=bash"],
    ],
    ids=" ".join,
)
def test_hydras_flags_print_what_they_are_for(call: Any, words: list[str]) -> None:
    done = call("train", *words)
    assert (done.code, done.err) == (0, "")
    assert done.out
    assert not list(Path().iterdir())


@pytest.mark.parametrize("words", [["table", "runs=results/sines_and_lines"], ["train", "--cfg=job"]], ids=" ".join)
def test_a_reader_that_has_read_enough_is_no_error(words: list[str]) -> None:
    command = [sys.executable, f"tools/{words[0]}.py", *words[1:]]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.stderr, done.returncode) == ("", 1)


def test_cfg_job_shows_what_runs_with_the_recipe_in_it(call: Any) -> None:
    shown = call("train", "algorithm=maml", "dataset=omniglot", "train.meta_batch=7", "--cfg", "job")
    cfg = OmegaConf.create(shown.out)
    assert (cfg.recipe, cfg.algorithm.learner.inner_lr, cfg.train.meta_batch) == ("cbfinn", 0.4, 7)
    part = call("train", "algorithm=maml", "dataset=omniglot", "--cfg=job", "--package=algorithm.learner")
    assert part.out.startswith("# @package algorithm.learner\n_target_: fewshot.MAML\n")


def test_cfg_job_of_an_experiment_shows_the_one_run_that_the_words_leave(call: Any) -> None:
    words = ("experiment=cpu_benchmark", "algorithm=leo", "dataset=mini", "shot=1", "--cfg", "job")
    cfg = OmegaConf.create(call("train", *words).out)
    assert (cfg.recipe, cfg.features.name, cfg.train.steps, cfg.sweeps) == ("one_hour", "conv4", 2000, None)
    several = call("train", *words[:1], *words[-2:])
    assert (several.code, several.err.count("\n")) == (1, 1)
    assert several.err.startswith("error: --cfg: shows one run; choose one of the experiment's sweeps: algorithm=")


def test_an_error_in_a_persons_own_file_is_one_line_with_its_place() -> None:
    with pytest.raises(KeyError) as failure:
        {}["rate"]
    failure.value.add_note("in step 4")
    place = r"test_command_line.py:\d+: KeyError: 'rate'; in step 4; HYDRA_FULL_ERROR=1 shows the traceback"
    assert re.fullmatch(place, format_error(failure.value))


def test_a_run_says_how_many_settings_its_recipe_made(call: Any) -> None:
    words = ("algorithm=maml", "dataset=sinusoid", "train.steps=1", *TEST, "run_dir=run")
    recipe = call("train", *words).out.splitlines()[0]
    shown = OmegaConf.create(call("train", *words, "--cfg", "job").out)
    rows = OmegaConf.load(ROOT / "conf/recipes/cbfinn.yaml").rows
    made = {key for row in rows if row.when.get("dataset") == "sinusoid" for key in row.set} - {"train.steps"}
    assert recipe == f"recipe {shown.recipe}: {len(made)} settings, {shown.train.steps:,} steps; see --cfg job"
    assert not call("train", *words[1:-1], "recipe=none", "run_dir=other").out.startswith("recipe")


def test_help_lists_the_groups_that_can_be_chosen_and_no_others(call: Any) -> None:
    groups = {
        "train": {"algorithm", "backbone", "dataset", "experiment", "features", "protocol"},
        "evaluate": {"dataset", "protocol"},
        "table": {"layout"},
    }
    for tool, wanted in groups.items():
        text = call(tool, "--help").out
        listed = text.split("group=option:\n")[1].split("\n\n")[0].splitlines()
        assert {line.split(":")[0] for line in listed} == wanted
        assert text.startswith(runpy.run_path(str(ROOT / f"tools/{tool}.py"))["__doc__"])
    assert "group=option" not in call("bench", "--help").out


def test_the_block_of_hydra_stands_once() -> None:
    texts = [path.read_text() for path in (ROOT / "conf").glob("*.yaml")]
    assert sum("output_subdir" in text for text in texts) == 1


def test_the_command_line_is_answered_before_torch_is_imported() -> None:
    heavy = ("torch", "pandas", "scipy", "matplotlib", "tensorboard", "torchvision", "numpy", "PIL", "tabulate")
    program = f"""
import contextlib, io, runpy, sys
def answer(tool, *words):
    sys.argv = [tool, *words]
    with contextlib.suppress(SystemExit):
        runpy.run_path(f"{ROOT}/tools/{{tool}}.py", run_name="__main__")
    loaded = [name for name in {heavy!r} if name in sys.modules]
    assert not loaded, (tool, words, loaded)
for tool in ("train", "evaluate", "pretrain", "prepare", "table", "report", "bench"):
    answer(tool, "shoot=5")
    answer(tool, "--cfg", "job")
answer("train", "--help")  # composes nothing
answer("train", "algorithm=leo", "dataset=sinusoid")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: shoot: no such key") == 7


def test_a_tool_of_one_clone_does_not_run_the_package_of_another(tmp_path: Path) -> None:
    (tmp_path / "fewshot").mkdir()
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    command = [sys.executable, tmp_path / "tools/table.py", "--cfg", "job"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = f"{tmp_path}/tools/table.py: {ROOT} is installed, and would run; set PYTHONPATH={tmp_path} to run this clone"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {said}\n")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("flag", ["-m", "--multirun", "--multi"])
def test_flags_stand_anywhere(place: int, flag: str) -> None:
    words = ["algorithm=nearest", "seed=0,1"]
    flags = parse_flags([*words[:place], flag, *words[place:]])
    assert (flags.multirun, flags.overrides) == (True, words)


def test_a_sweep_by_hydras_mode_ends_with_its_table(call: Any) -> None:
    done = call("train", "hydra.mode=MULTIRUN", "algorithm=nearest", "seed=0,1", *COUNTS, "runs=runs")
    assert (done.code, done.err) == (0, "")
    assert "| nearest" in done.out


def test_an_experiment_sweeps_its_cells_with_or_without_m(call: Any) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/cells.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {way: 2, shot: '1,2'}}}\n"
    )
    words = ("--config-dir", "own", "experiment=cells", "algorithm=nearest", "dataset=glyphs", *COUNTS, "runs=runs")
    done = call("train", *words, "copy_records_to=kept")
    assert (done.code, done.err) == (0, "")
    assert len(list(Path("kept").rglob("record.json"))) == 2


def test_an_experiment_of_several_sweeps_ends_in_one_table_and_the_command_line_takes_a_part_of_them(call: Any) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/two.yaml").write_text(
        "# @package _global_\n"
        "sweeps: [algorithm=nearest shot=1 way=2, algorithm=nearest shot=1 way=3, algorithm=reptile shot=1 way=2]\n"
        "hydra: {mode: MULTIRUN}\n"
    )
    words = ("--config-dir", "own", "experiment=two", "dataset=glyphs", *COUNTS, "runs=runs")
    done = call("train", *words, "algorithm=nearest", "seed=0,1")
    assert (done.code, done.err) == (0, "")
    assert {"2-way 1-shot", "3-way 1-shot"} <= {cell.strip() for cell in done.out.split("|")}
    assert len(list(Path("runs").rglob("record.json"))) == 4
    refused = call("train", *words, "shot=5")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "shot=5: has no run of this experiment; its sweeps are: algorithm=nearest shot=1 way=2;" in refused.err


SWEEPS = ["algorithm=maml,reptile shot=1,5", "algorithm=leo features=conv4"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], [["algorithm=maml,reptile", "shot=1,5"], ["algorithm=leo", "features=conv4"]]),
        (["algorithm=maml", "seed=1"], [["algorithm=maml", "shot=1,5", "seed=1"]]),
        (["features=conv4"], [["algorithm=leo", "features=conv4"]]),
        (["algorithm=leo", "~train.clip"], [["algorithm=leo", "features=conv4", "~train.clip"]]),
        (["algorithm=glob(m*)"], [["algorithm=maml", "shot=1,5"]]),
        (["~features"], "~features: has no run of this experiment"),
        (["algorithm=maml,boil", "shot=1,3"], "algorithm=boil shot=3: has no run of this experiment"),
        (["shot=interval(1,5)"], "an interval is for a search"),
    ],
)  # fmt: skip
def test_a_part_of_the_sweeps_of_an_experiment_is_those_with_the_given_words(words: list[str], parts: Any) -> None:
    files = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    overrides = OverridesParser.create(files).parse_overrides(words)
    if isinstance(parts, str):
        with pytest.raises(FewshotError, match=parts):
            split_sweeps(SWEEPS, overrides)
    else:
        assert split_sweeps(SWEEPS, overrides) == [[*part, "sweeps=null"] for part in parts]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sweeps=['algorithm=nearest shot=1']",), "sweeps: this configuration is of several sweeps; add -m"),
        (("-m", "sweeps='algorithm=nearest'"), "must be a list, such as sweeps=['algorithm=nearest']"),
        (("-m", "sweeps=[{algorithm: nearest}]"), "must be a list of texts"),
        (("-m", "sweeps=[nearest]"), "sweeps=['nearest']: must be a list of texts"),
    ],
)
def test_mistakes_about_sweeps_are_one_line(call: Any, words: tuple[str, ...], said: str) -> None:
    done = call("train", *words, "runs=runs")
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert said in done.err
    assert not Path("runs").exists()


def test_a_pipe_that_breaks_elsewhere_than_at_stdout_is_an_error(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        raise BrokenPipeError("of a tracker")

    monkeypatch.setattr("fewshot.experiment.train.training_run", broken)
    done = call("train")
    assert (done.code, done.err) == (1, "error: of a tracker\n")


def test_a_folder_of_ones_own_has_options_in_every_group(call: Any) -> None:
    own = Path("own")
    for group, name in (("algorithm", "maml"), ("dataset", "glyphs"), ("backbone", "conv4"), ("layout", "free")):
        (own / group).mkdir(parents=True)
        (own / group / "mine.yaml").write_text(f"defaults: [{name}]\n")
    (own / "experiment").mkdir()
    (own / "experiment/mine.yaml").write_text("# @package _global_\nseed: 5\n")
    (own / "mytrain.yaml").write_text("defaults: [train, _self_]\nshot: 2\n")
    words = ("algorithm=mine", "dataset=mine", "backbone=mine", "experiment=mine", "run_dir=run")
    for flag in (["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own"]):
        shown = call("train", *words, *flag, "--cfg", "job")
        assert (shown.code, shown.err) == (0, "")
        assert OmegaConf.create(shown.out).seed == 5
    assert "seed: 5" in call("train", *words, "hydra.searchpath=[file://own]", "--cfg", "job").out
    assert call("train", "--config-dir", "own", "--config-name=mytrain", *words[:-1], *TINY, "run_dir=run").code == 0
    assert "shot: 2" in Path("run/config.yaml").read_text()
    swept = call("train", *words[1:-1], "algorithm=mine,nearest", "--cfg=job", "--config-dir=own")
    assert "several values are a sweep" in swept.err
    near = call("train", "--config-dir", "own", "algorithm=mien")
    assert "algorithm=mien: no such option, did you mean mine?" in near.err
    assert call("table", "--config-dir", "own", "layout=mine", "rows=[algorithm]", "runs=run").code == 0


def test_a_sweep_in_words_of_hydra_runs_each(call: Any) -> None:
    algorithms = "algorithm=glob(nearest*,exclude=[*_mean])"
    done = call("train", algorithms, "seed=range(0,2)", "shot=choice(1,2)", "-m", *TEST, "runs=runs")
    assert (done.code, len(list(Path("runs").rglob("record.json")))) == (0, 4)


def test_words_that_look_like_a_flags_value_are_overrides() -> None:
    flags = parse_flags(["a=1", "--cfg", "job", "b=2", "--package", "x", "c=3", "-m"][:-1])
    assert (flags.overrides, flags.cfg, flags.package) == (["a=1", "b=2", "c=3"], "job", "x")
    with pytest.raises(FewshotError, match="invalid choice: 'a=1'"):
        parse_flags(["--info", "a=1"])


def test_a_tool_prints_what_an_ascii_terminal_can_show(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    words = ('runs="rüns\u2026"', "--cfg", "job", "--package", "runs")
    command = [sys.executable, str(ROOT / "tools/train.py"), *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"r\\xfcns...\n", b"")


@pytest.mark.parametrize(
    ("encoding", "said"), [("ascii", "+-... \\u65e5"), ("latin-1", "±... \\u65e5"), ("utf-8", "±… 日")]
)
def test_letters_that_a_terminal_lacks_are_spelt(monkeypatch: pytest.MonkeyPatch, encoding: str, said: str) -> None:
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding, write_through=True))
    replace_unprintable()
    for stream in (sys.stdout, sys.stderr):
        stream.write("±… 日")
    assert raw.getvalue() == 2 * said.encode(encoding)
