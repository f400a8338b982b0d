"""The command line: what Hydra accepts is accepted, flags wherever they stand, and what it refuses is one line."""

from __future__ import annotations

import io
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.experiment import command_line
from fewshot.experiment.cli import replace_unprintable
from fewshot.experiment.command_line import check_overrides, open_hydra, parse_flags, parse_overrides, typed

ROOT = Path(__file__).resolve().parents[2]
TINY = ("train.steps=0", "test.episodes=2", "test.validation_episodes=2", "backbone.network.filters=4", "query=1")

# Texts that Hydra reads as something else than themselves, or not at all, unless they are quoted.
NASTY = (
    "/data/my=folder", "/data/a#b", "/data/my folder (1)", "/data/it's", "/data/[new]", "/data/{x}", "[new]", "{x:1}",
    "/data/müller", "/data/日本", "a,b", "/data/a;b", "/data/a&b", "/data/a!", "/data/<a>", '/data/"a"', "/data/`a`",
    "/data/a^b", "/data/a(b", "/data/a)b", "/data/[a", "/data/a]", "{a", "a}", "2024", "1e3", "007", "true", "nan",
    "f(x)", "choice(a)", "'a", '"a', "/data/a~b", "a\\'b", 'a\\"b', "/data/a=$HOME", "/data/a#${b}", " a#b ", "~a,b",
)  # fmt: skip
# Those that need no quotes for Hydra, though some of them do for a shell.
PLAIN = (
    "/data/my folder", "/data/a$b", "$HOME/data", "/data/a:b", "C:\\data", "a\\", "~/data", "~", "/data/a@b",
    "/data/a%b", "/data/a+b", "/data/a*b", "/data/a?b", "/data/a|b", "../data", ".", "/data/a-1.0_b", "2024-01-01",
)  # fmt: skip


def value_of(word: str) -> Any:
    """What Hydra makes of a word."""
    override = OverridesParser.create().parse_override(word)
    return OmegaConf.create({"key": override.value()}).key


def checked(*words: str) -> list[str]:
    """The words as Hydra gets them."""
    flags = parse_flags(list(words))
    GlobalHydra.instance().clear()
    hydra = open_hydra(flags, "train")
    overrides = parse_overrides(flags.overrides, hydra, flags.multirun)
    check_overrides(overrides, "train", hydra, flags.multirun)
    return [override.input_line or "" for override in overrides]


@pytest.mark.parametrize("text", [*NASTY, *PLAIN])
def test_a_quoted_text_is_one_word_of_a_shell_and_to_hydra_itself(text: str) -> None:
    (word,) = shlex.split(typed("key", text))
    assert value_of(word) == text


@pytest.mark.parametrize("text", [text for text in NASTY if text != "007"])
def test_a_path_that_needs_quotes_is_answered_with_the_line_as_it_is_typed(text: str) -> None:
    with pytest.raises(FewshotError, match="^dataset.reader.root") as refused:
        checked("dataset=folder", f"dataset.reader.root={text}")
    (remedy,) = shlex.split(str(refused.value).split(" typed ")[1])
    assert remedy.startswith("dataset.reader.root=")
    assert value_of(remedy) == text.removeprefix("'").removeprefix('"')
    checked("dataset=folder", remedy)


@pytest.mark.parametrize("text", ["007", *PLAIN])
def test_a_path_that_hydra_can_read_is_taken_as_it_is(text: str) -> None:
    assert value_of(checked("dataset=folder", f"dataset.reader.root={text}")[1]) == text


@pytest.mark.parametrize("flag", [[], ["-m"]])
def test_a_path_of_digits_is_no_number_that_is_too_large(flag: list[str]) -> None:
    assert checked(*flag, "run_dir=20261126123456") == ["run_dir=20261126123456"]
    for value in ("20261126123456", *(["a,20261126123456"] if flag else [])):
        with pytest.raises(FewshotError, match="as a path it is typed 'dataset.reader.root=\"20261126123456\"'"):
            checked(*flag, "dataset=folder", f"dataset.reader.root={value}")


def test_a_new_key_and_one_of_hydra_take_any_number() -> None:
    checked("+backbone.network.limit=3000000000", "hydra.job.num=3000000000")
    for word in ("++seed=99999999999999999999", "backbone.network.filters=3000000000"):
        with pytest.raises(FewshotError, match="too large a number"):
            checked(word)


def test_of_a_sweep_the_options_of_groups_alone_are_composed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    compose = command_line._compose

    def counted(hydra: Any, config: str, lines: list[str], *mode: Any) -> Any:
        composed.append(lines)
        return compose(hydra, config, lines, *mode)

    monkeypatch.setattr(command_line, "_compose", counted)
    checked("-m", "algorithm=maml,nearest", "seed=" + ",".join(map(str, range(50))), "+new.key=1,2")
    assert len(composed) == 4  # once for each algorithm, and without and with what is swept
    for word, said in (("seed=0,1,x", "seed=x: Value 'x'"), ("sed=0,1", "sed: no such key, did you mean seed")):
        with pytest.raises(FewshotError, match=said):
            checked("-m", word)


@pytest.mark.parametrize("text", ["a(b)${HOME}", "a\\${HOME}("])
def test_a_text_with_a_literal_variable_is_the_folder_that_a_run_is_in(call: Any, text: str) -> None:
    (remedy,) = shlex.split(typed("run_dir", text))
    words = ("algorithm=nearest", "way=2", *TINY[1:3], "query=1")
    done = call("train", *words, remedy)
    assert (done.code, [str(path) for path in Path().iterdir()]) == (0, [text]), done.err
    for tool, key in (("train", "resume"), ("evaluate", "run")):
        (again,) = shlex.split(typed(key, text))
        done = call(tool, again)
        assert done.code == 0, done.err
    assert [str(path) for path in Path().iterdir()] == [text]


@pytest.mark.parametrize("title", ["$k$-shot accuracy", "~95 % intervals", "~", "$HOME"])
def test_a_text_that_is_no_path_stays_as_it_is(call: Any, title: str) -> None:
    assert call("train", "algorithm=nearest", "way=2", *TINY[1:3], "query=1", "run_dir=run").code == 0
    done = call("table", f"layout.title={title}", "runs=run")
    assert (done.code, done.err) == (0, "")
    assert title in done.out


@pytest.mark.parametrize("key", ["runs", "data_dir", "run_dir", "copy_records_to", "dataset.reader.cache"])
def test_every_path_is_text(key: str) -> None:
    with pytest.raises(FewshotError, match="typed") as refused:
        checked("dataset=folder", f"{key}=1e3")
    assert value_of(shlex.split(str(refused.value).split(" typed ")[1])[0]) == "1e3"


def test_a_comma_is_a_sweep_or_quoted(call: Any) -> None:
    done = call("train", "run_dir=a,b")
    assert done.err == (
        "error: run_dir=a,b: several values are a sweep; add -m; as one text it is typed 'run_dir=\"a,b\"'\n"
    )
    several = call("train", "-m", "runs=a=b,c#")
    assert several.err.endswith('as text it is typed \'runs="a=b,c#"\', as several \'runs="a=b","c#"\'\n')
    quoted = call("train", "-m", 'runs="a,b"', "seed=0,1", *TINY)
    assert (quoted.code, quoted.err) == (0, "")
    assert len(list(Path("a,b").rglob("record.json"))) == 2


def test_a_space_that_the_shell_took_is_said(call: Any) -> None:
    done = call("train", "runs=my", "folder")
    assert done.err == (
        "error: command line: 'folder' is no key=value; if it belongs to the value before it, type "
        "'runs=\"my folder\"'\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job"],
        ["--cfg=job"],
        ["-c", "job", "seed=3"],
        ["seed=3", "--cfg", "job", "way=7"],
        ["--cfg", "all", "--resolve"],
        ["--cfg", "hydra"],
        ["--cfg", "job", "--package", "train"],
        ["--cfg=job", "-p", "test.episodes"],
        ["--info", "all"],
        ["--info"],
        ["-i", "searchpath"],
        ["seed=3", "--info=defaults-tree", "way=7"],
        ["--help"],
        ["-h", "algorithm=leo"],
        ["--hydra-help"],
        ["--version"],
        ["--config-name", "train", "--cfg", "job"],
        ["--config-path", str(ROOT / "conf"), "--cfg", "job"],
        ["--config-path=../conf", "--cfg", "job"],
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


def test_cfg_job_shows_what_runs_with_the_recipe_in_it(call: Any) -> None:
    shown = call("train", "algorithm=maml", "dataset=omniglot", "train.meta_batch=7", "--cfg", "job")
    cfg = OmegaConf.create(shown.out)
    assert (cfg.recipe, cfg.algorithm.learner.inner_lr, cfg.train.meta_batch) == ("cbfinn", 0.4, 7)
    part = call("train", "algorithm=maml", "dataset=omniglot", "--cfg=job", "--package=algorithm.learner")
    assert part.out.startswith("# @package algorithm.learner\n_target_: fewshot.Maml\n")


def test_a_run_says_how_many_settings_its_recipe_made(call: Any) -> None:
    words = ("algorithm=maml", "dataset=sinusoid", "train.steps=0", "test.episodes=2", "run_dir=run")
    recipe = call("train", *words).out.splitlines()[0]
    shown = OmegaConf.create(call("train", *words, "--cfg", "job").out)
    rows = OmegaConf.load(ROOT / "conf/recipes/cbfinn.yaml").rows
    made = {key for row in rows if row.when.get("dataset") == "sinusoid" for key in row.set} - {words[2], words[3]}
    made = {key for key in made if key not in ("train.steps", "test.episodes")}
    assert recipe == f"recipe {shown.recipe}: {len(made)} settings; see --cfg job"
    assert not call("train", *words[1:-1], "recipe=none", "run_dir=other").out.startswith("recipe")


def test_help_lists_the_groups_that_can_be_chosen_and_no_others(call: Any) -> None:
    groups = {"train": {"algorithm", "backbone", "dataset", "experiment", "features"}, "table": {"layout"}}
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
    answer(tool, "--help")
    answer(tool, "--cfg", "job")
answer("train", "algorithm=leo", "dataset=sinusoid")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: shoot: no such key") == 7


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("flag", ["-m", "--multirun", "--multi"])
def test_flags_stand_anywhere(place: int, flag: str) -> None:
    words = ["algorithm=nearest", "seed=0,1"]
    flags = parse_flags([*words[:place], flag, *words[place:]])
    assert (flags.multirun, flags.overrides) == (True, words)


def test_a_sweep_by_hydras_mode_ends_with_its_table(call: Any) -> None:
    done = call("train", "hydra.mode=MULTIRUN", "algorithm=nearest", "seed=0,1", "test.episodes=2", "runs=runs")
    assert (done.code, done.err) == (0, "")
    assert "| nearest (pixels), inductive" in done.out


def test_an_experiment_sweeps_its_cells_with_or_without_m(call: Any) -> None:
    cells = ("way=2", "shot=1,2", "algorithm=nearest", "dataset=glyphs", "test.episodes=2", "runs=runs")
    done = call("train", "experiment=omniglot_maml", *cells, "copy_records_to=kept", "inductive_too=false")
    assert (done.code, done.err) == (0, "")
    assert len(list(Path("kept").rglob("record.json"))) == 2


def test_a_folder_of_ones_own_has_options_in_every_group(call: Any) -> None:
    own = Path("own")
    for group, name in (("algorithm", "maml"), ("dataset", "glyphs"), ("backbone", "conv4"), ("layout", "free")):
        (own / group).mkdir(parents=True)
        (own / group / "mine.yaml").write_text(f"defaults: [{name}]\n")
    (own / "experiment").mkdir()
    (own / "experiment/mine.yaml").write_text("# @package _global_\nseed: 5\nquery: 3\n")
    (own / "mytrain.yaml").write_text("defaults: [train, _self_]\nshot: 2\n")
    words = ("algorithm=mine", "dataset=mine", "backbone=mine", "experiment=mine", "run_dir=run")
    for flag in (["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own"]):
        shown = call("train", *words, *flag, "--cfg", "job")
        assert (shown.code, shown.err) == (0, "")
        assert OmegaConf.create(shown.out).seed == 5
    assert "seed: 5" in call("train", *words, "hydra.searchpath=[file://own]", "--cfg", "job").out
    assert (
        call("train", "--config-dir", "own", "--config-name=mytrain", *words[:-1], *TINY[:-1], "run_dir=run").code == 0
    )
    assert "shot: 2" in Path("run/config.yaml").read_text()
    swept = call("train", *words[1:-1], "algorithm=mine,nearest", "--cfg=job", "--config-dir=own")
    assert "several values are a sweep" in swept.err
    near = call("train", "--config-dir", "own", "algorithm=mien")
    assert "algorithm=mien: no such option, did you mean mine?" in near.err
    assert call("table", "--config-dir", "own", "layout=mine", "rows=[algorithm]", "runs=run").code == 0


def test_a_sweep_in_words_of_hydra_runs_each(call: Any) -> None:
    algorithms = "algorithm=glob(nearest*,exclude=[*_mean])"
    done = call("train", algorithms, "seed=range(0,2)", "query=choice(1,2)", "-m", "test.episodes=2", "runs=runs")
    assert (done.code, len(list(Path("runs").rglob("record.json")))) == (0, 4)


ACCEPTED = {  # words, and what they make of a key
    "a forced key": (["++seed=4"], "seed", 4),
    "a new key": (["+dataset.reader.mine=3"], "dataset.reader.mine", 3),
    "a deleted key": (["~dataset.augment.episodes"], "dataset.augment.episodes", "none"),
    "a deleted key of this value": (["~algorithm.learner.first_order=false"], "algorithm.learner.first_order", None),
    "a deleted group": (["~experiment"], "seed", 0),
    "a group at another package": (["+backbone@features=conv4"], "features.name", "conv4"),
    "a group twice": (["experiment=[omniglot_maml]"], "dataset.name", "omniglot"),
    "a key twice": (["seed=1", "seed=2"], "seed", 2),
    "a quoted number": (["run_dir='1'"], "run_dir", "1"),
    "an empty text": (["run_dir="], "run_dir", ""),
    "a list": (["test.steps=[1,5]"], "test.steps", [1, 5]),
    "a cast": (["seed=int('3')"], "seed", 3),
    "an interpolation": (["seed=${way}"], "seed", 5),
    "the environment": (["runs=${oc.env:FEWSHOT_DATA}/runs", "--resolve"], "way", 5),
    "words after --": (["--", "seed=1"], "seed", 1),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_hydra_accepts_is_accepted(call: Any, kind: str) -> None:
    words, key, wanted = ACCEPTED[kind]
    done = call("train", "--cfg", "job", *words)
    assert (done.code, done.err) == (0, "")
    assert OmegaConf.select(OmegaConf.create(done.out), key) == wanted


REFUSED = {
    "an unknown flag": (["--multirn"], "--multirn: no such flag, did you mean --multirun"),
    "a setting with dashes": (["--seed=3"], "a setting is written without dashes: seed=3"),
    "a setting with dashes and a space": (["--seed", "3"], "a setting is written without dashes: seed=<value>"),
    "a flag without its value": (["--cfg"], "argument --cfg/-c: expected one argument"),
    "a flag with another value": (["--cfg", "jobs"], "argument --cfg/-c: invalid choice: 'jobs'"),
    "half a flag": (["--config", "x"], "ambiguous option: --config"),
    "two commands": (["--cfg", "job", "-m"], "exclude each other"),
    "resolve alone": (["--resolve"], "--resolve: goes with --cfg or --help"),
    "no such part": (["--cfg", "job", "--package", "tran"], "--package=tran: no such part, did you mean train or"),
    "no folder of one's own": (["--config-dir", "nowhere"], "--config-dir=nowhere: no such folder"),
    "no other folder": (["--config-path", "nowhere"], "--config-path=nowhere: no folder"),
    "no other file": (["--config-name", "nothing"], "Cannot find primary config 'nothing'"),
    "no such shell": (["-sc", "install=nothing"], "No completion plugin for 'nothing'"),
    "no pickle": (["--experimental-rerun", "nowhere"], "nowhere does not exist"),
    "a mistake beside help": (["--help", "algorithm=mamal"], "algorithm=mamal: no such option, did you mean maml"),
    "a null that is deleted": (["~test.steps"], "~test.steps: is null already, so there is nothing to delete"),
    "no such key to delete": (["~test.stps"], "test.stps: no such key, did you mean test.steps or"),
    "another value to delete": (["~way=6"], "The value of 'way' is 5 and not 6"),
    "a deleted need": (["~way"], "~way: is always needed"),
    "a deleted class": (["~dataset.reader"], "dataset.reader: is needed and not in the configuration"),
    "a deleted part of it": (
        ["~test.episodes=600"],
        "~test.episodes=600: is always needed",
    ),
    "all of it deleted": (["~train"], "~train: is always needed; it can be set, and not deleted"),
    "a deleted dataset": (["~dataset"], "dataset: is needed and not in the configuration"),
    "a key that is there": (["+seed=1"], "+seed=1: the key is there already; write seed=1"),
    "a package without a group": (["seed@other=1"], "config group 'seed' does not exist"),
    "a group elsewhere": (["dataset@other=glyphs"], "dataset@other=glyphs: "),
    "no key": (["=1"], "=1: has no key; write key=value"),
    "no key to delete": (["~"], "~: has no key"),
    "a key of digits": (["1=2"], "'1' cannot be a key"),
    "an open quote": (["runs='x"], "as text it is typed 'runs=\"x\"'"),
    "an open bracket": (["test.steps=[1"], "test.steps: Hydra cannot read the value [1"),
    "an unknown variable": (["recipe=${HOME}/x"], "an environment variable is ${oc.env:HOME}"),
    "no number": (["seed=five"], "seed=five: Value 'five' of type 'str' could not be converted to Integer"),
    "a number that is too large": (["seed=99999999999999999999"], "seed=99999999999999999999: too large a number"),
    "a number that is too small": (["seed=-99999999999999999999"], "too large a number"),
    "too large a count": (["algorithm.learner.inner_steps=9223372036854775807"], "too large a number"),
    "a large number in a list": (["test.steps=[1,99999999999999999999]"], "too large a number"),
    "a large number in a sweep": (["-m", "seed=1,99999999999999999999"], "too large a number"),
    "a large number in a range": (["-m", "seed=range(1,99999999999999999999)"], "too large a number"),
    "an infinite number": (["seed=1e400"], "could not be converted to Integer"),
    "no whole number": (["seed=nan"], "could not be converted to Integer"),
    "a number as a list": (["seed=[1]"], "could not be converted to Integer"),
    "a number as null": (["seed=null"], "field 'seed' is not Optional"),
    "a number as true": (["seed=true"], "could not be converted to Integer"),
    "an empty number": (["seed="], "could not be converted to Integer"),
    "a sweep of hydra": (["-m", "hydra.verbose=true,false"], "Sweeping over Hydra's configuration is not supported"),
    "bytes that are no text": (["runs=\udcff"], "no text in utf-8"),
    "a line break": (["runs=a#\nb"], "runs: Hydra cannot read the value a#\\nb"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_hydra_refuses_is_one_line(call: Any, kind: str) -> None:
    words, said = REFUSED[kind]
    done = call("train", *words)
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert not done.out or done.out.startswith("recipe ")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("tool", "word", "said"),
    [
        ("table", "layout.algorithms=true", "layout.algorithms=true: must be a list, such as layout.algorithms=[true]"),
        ("table", "published=maybe", "published=maybe: must be true or false"),
        ("table", "~published", "~published: is always needed"),
        ("report", "~layout.rows", "~layout.rows: is always needed"),
        ("report", "layout.rows=3", "layout.rows=3: Cannot assign int to dict[str, Any]"),
        ("bench", "networks.mini=3", "networks.mini=3: Cannot assign int to dict[str, Any]"),
        ("bench", "rounds=x", "rounds=x: Value 'x' of type 'str' could not be converted to Integer"),
        ("bench", "engines=loop", "engines=loop: must be a list, such as engines=[loop]"),
        ("prepare", "check=[1]", "check=[1]: Value '[1]' is not a valid bool"),
        ("train", "algorithm.learner=0", "algorithm.learner=0: has parts, such as algorithm.learner._target_"),
        ("train", "algorithm.name=[1,2]", "algorithm.name=[1, 2]: must be text"),
        ("train", "dataset.name=2024", "dataset.name=2024: must be text; a number is quoted: 'dataset.name=\"2024\"'"),
        ("train", "dataset.reader=null", "dataset.reader=None: has parts"),
        ("train", "backbone.network=conv4", "backbone.network=conv4: has parts"),
        ("train", "train.outer_lr=nan", "train.outer_lr=nan: must be at least 0"),
        ("evaluate", "steps=five", "not a run folder"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line(call: Any, tool: str, word: str, said: str) -> None:
    done = call(tool, word, *(["run=nowhere"] if tool == "evaluate" else []))
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert not done.out or done.out.startswith("recipe ")
    assert said in done.err
    assert not list(Path().iterdir())


def test_a_sweep_is_not_for_processes_of_torchrun(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["seed=0,1", "-m"], ["hydra.mode=MULTIRUN"]):
        done = call("train", *words)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "torchrun shares one run among processes" in done.err


def test_words_that_look_like_a_flags_value_are_overrides() -> None:
    flags = parse_flags(["a=1", "--cfg", "job", "b=2", "--package", "x", "c=3", "-m"][:-1])
    assert (flags.overrides, flags.cfg, flags.package) == (["a=1", "b=2", "c=3"], "job", "x")
    with pytest.raises(FewshotError, match="invalid choice: 'a=1'"):
        parse_flags(["--info", "a=1"])


def test_a_run_ends_well_on_an_ascii_terminal(data_dir: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONIOENCODING": "ascii", "FEWSHOT_DATA": str(data_dir), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = ("algorithm=nearest", "test.episodes=2", 'runs="rüns\u2026"')
    command = [sys.executable, str(ROOT / "tools/train.py"), *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert " +- " in done.stdout.decode("ascii") and "r\\xfcns..." in done.stdout.decode("ascii")


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
