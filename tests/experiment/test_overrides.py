"""Overrides: what Hydra accepts is accepted, and what it refuses is one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.experiment import overrides
from fewshot.experiment.command_line import open_hydra, parse_flags
from fewshot.experiment.overrides import check_overrides
from fewshot.experiment.parse import parse_overrides, typed

TEST = ("protocol=common", "protocol.common.episodes=2", "protocol.common.setting=transductive")
TINY = ("train.steps=0", "validation.episodes=2", "backbone.network.filters=4", *TEST)

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


def checked(*words: str, compose: bool = True) -> list[str]:
    """The words as Hydra gets them; without `compose` the configuration that they make is not checked."""
    flags = parse_flags(list(words))
    GlobalHydra.instance().clear()
    hydra = open_hydra(flags, "train")
    parsed = parse_overrides(flags.overrides, hydra, flags.multirun)
    if compose:
        check_overrides(parsed, "train", hydra, flags.multirun)
    return [override.input_line or "" for override in parsed]


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


@pytest.mark.parametrize("text", ["007", *PLAIN])
def test_a_path_that_hydra_can_read_is_taken_as_it_is(text: str) -> None:
    words = checked("dataset=folder", f"dataset.reader.root={text}", compose=text in ("007", "~/data"))
    assert value_of(words[1]) == text


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
    compose = overrides._compose

    def counted(hydra: Any, config: str, lines: list[str], *mode: Any) -> Any:
        composed.append(lines)
        return compose(hydra, config, lines, *mode)

    monkeypatch.setattr(overrides, "_compose", counted)
    checked("-m", "algorithm=maml,nearest", "seed=" + ",".join(map(str, range(50))), "+new.key=1,2")
    assert len(composed) == 4  # once for each algorithm, and without and with what is swept
    for word, said in (
        ("seed=0,1,x", "seed=x: must be a whole number"),
        ("sed=0,1", "sed: no such key, did you mean seed"),
    ):
        with pytest.raises(FewshotError, match=said):
            checked("-m", word)


def test_each_pair_of_options_of_a_sweep_is_composed_before_the_first_run() -> None:
    with pytest.raises(FewshotError, match="features are of images; a regression is learned by maml"):
        checked("-m", "algorithm=maml,leo", "dataset=glyphs,sinusoid")
    # The sweeps of an experiment take what fits of the words.
    checked("-m", "experiment=cpu_benchmark", "algorithm=maml,leo", "dataset=mini,omniglot", "features=none,conv4")


def test_the_arguments_of_a_persons_own_class_may_have_any_names() -> None:
    own = "+backbone.network.out=64", "+backbone.network.checkpoint=true", "+algorithm.learner.sources=2"
    checked("backbone=module", "backbone.target=mine.Net", "algorithm.learner._target_=mine.Learner", *own)
    with pytest.raises(FewshotError, match="backbone.network.weights: 1e3 is no text to Hydra; as a path it is typed"):
        checked("backbone=torchvision", "backbone.network.weights=1e3")


@pytest.mark.parametrize("text", ["a(b)${HOME}", "a\\${HOME}("])
def test_a_text_with_a_literal_variable_is_the_folder_that_a_run_is_in(call: Any, text: str) -> None:
    (remedy,) = shlex.split(typed("run_dir", text))
    words = ("algorithm=nearest", "way=2", *TEST)
    done = call("train", *words, remedy)
    assert (done.code, [str(path) for path in Path().iterdir()]) == (0, [text]), done.err
    for tool, key, *test in (("train", "resume"), ("evaluate", "run", *TEST)):
        (again,) = shlex.split(typed(key, text))
        done = call(tool, again, *test)
        assert done.code == 0, done.err
    assert [str(path) for path in Path().iterdir()] == [text]


def test_a_text_that_is_no_path_stays_as_it_is(call: Any) -> None:
    assert call("train", "algorithm=nearest", "way=2", *TEST, "run_dir=run").code == 0
    for title in ("$k$-shot accuracy", "~95 % intervals", "~", "$HOME"):
        done = call("table", f"layout.title={title}", "runs=run")
        assert (done.code, done.err) == (0, "")
        assert title in done.out


@pytest.mark.parametrize("key", ["runs", "data_dir", "run_dir", "copy_records_to", "dataset.reader.cache"])
def test_every_path_is_text(key: str) -> None:
    with pytest.raises(FewshotError, match="typed") as refused:
        checked("dataset=folder", f"{key}=1e3")
    assert value_of(shlex.split(str(refused.value).split(" typed ")[1])[0]) == "1e3"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algorithm=[maml,fomaml]"], "takes one; several are a sweep: -m algorithm=maml,fomaml"),
        (["-m", "dataset=glyphs,[mini,omniglot]"], "takes one; several are a sweep: -m dataset=mini,omniglot"),
        (["protocol=[common,papr]"], "no such option, did you mean paper?"),
        (["protocol=common,paper"], "protocol=common,paper: several are a list: protocol=[common,paper]"),
        (["sweeps=a,b"], "sweeps=a,b: several are a list: sweeps=[a,b]"),
        (["protocol=glob(*)"], "protocol=glob(*): several values are a sweep; add -m"),
        (["algorithm=maml,fomaml"], "several values are a sweep; add -m, or give one\n"),
    ],
)
def test_several_options_are_a_list_of_protocols_and_else_a_sweep(words: list[str], said: str) -> None:
    with pytest.raises(FewshotError) as refused:
        checked(*words)
    assert said in f"{refused.value}\n"


def test_one_option_may_stand_in_brackets() -> None:
    assert checked("algorithm=[maml]", "protocol=[common,paper]")


def test_a_comma_is_a_sweep_or_quoted(call: Any) -> None:
    done = call("train", "run_dir=a,b")
    assert done.err.startswith("error: run_dir=a,b: several values are a sweep; add -m, or give one; as one text")
    assert done.err.endswith(" it is typed 'run_dir=\"a,b\"'\n")
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


ACCEPTED = {  # words, and what they make of a key
    "a forced key": (["++seed=4"], "seed", 4),
    "a new key": (["+dataset.reader.mine=3"], "dataset.reader.mine", 3),
    "a deleted key": (["~dataset.augment.episodes"], "dataset.augment.episodes", "none"),
    "a deleted key of this value": (["~algorithm.learner.first_order=false"], "algorithm.learner.first_order", None),
    "a deleted group": (["~experiment"], "seed", 0),
    "a group at another package": (["+backbone@features=conv4"], "features.name", "conv4"),
    "a group twice": (["experiment=[papers]", "algorithm=maml", "dataset=mini", "shot=1"], "runs", "runs/papers"),
    "a key twice": (["seed=1", "seed=2"], "seed", 2),
    "a quoted number": (["run_dir='1'"], "run_dir", "1"),
    "an empty text": (["run_dir="], "run_dir", ""),
    "a list": (["protocol.common.steps=[1,5]"], "protocol.common.steps", [1, 5]),
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
    "two commands": (["--cfg", "job", "--run"], "exclude each other"),
    "a sweep shown": (["--cfg", "job", "-m"], "--cfg: shows one run; leave out -m"),
    "resolve alone": (["--resolve"], "--resolve: goes with --cfg or --help"),
    "no such part": (["--cfg", "job", "--package", "tran"], "--package=tran: no such part, did you mean train?"),
    "no folder of one's own": (["--config-dir", "nowhere"], "--config-dir=nowhere: no such folder"),
    "no other settings": (
        ["--config-path", "nowhere"],
        "--config-path: has no use here; --config-dir=<folder> adds",
    ),
    "no other file": (["--config-name", "nothing"], "Cannot find primary config 'nothing'"),
    "no such shell": (["-sc", "install=nothing"], "No completion plugin for 'nothing'"),
    "no pickle": (["--experimental-rerun", "nowhere"], "--experimental-rerun: has no use here; tools/train.py resume="),
    "a mistake beside help": (["--help", "algorithm=mamal"], "algorithm=mamal: no such option, did you mean maml"),
    "a null that is deleted": (["~train.way"], "~train.way: is null already, so there is nothing to delete"),
    "a key with another name": (
        ["algorithm=protonet", "test_steps=5"],
        "test_steps: no such key, did you mean protocol.common.steps",
    ),
    "no such key to delete": (["~train.stps"], "train.stps: no such key, did you mean train.steps?"),
    "a key of other features": (
        ["features.role=start"],
        "role: no such key without features; choose one of features=conv4, features=resnet12, features=wrn28_10",
    ),
    "a key of other algorithms": (
        ["algorithm=protonet", "algorithm.learner.inner_lr=1"],
        "no such key of algorithm protonet; choose one of algorithm=anil, algorithm=boil, algorithm=fomaml and others",
    ),
    "another value to delete": (["~way=6"], "The value of 'way' is 5 and not 6"),
    "a deleted need": (["~way"], "~way: is always needed"),
    "a deleted class": (["~dataset.reader"], "dataset.reader: is needed and not in the configuration"),
    "a deleted part of it": (
        ["~validation.episodes=200"],
        "~validation.episodes=200: is always needed",
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
    "an open bracket": (["protocol.common.steps=[1"], "protocol.common.steps: Hydra cannot read the value [1"),
    "a list with spaces": (
        ["dataset.reader.fractions=[0.5,", "0.25,", "0.25]"],
        "spaces cut the list into several words; type 'dataset.reader.fractions=[0.5,0.25,0.25]'",
    ),
    "quotes of a text program": (["\u2018way=5\u2019"], "these quotes are no shell's; type 'way=5'"),
    "an unknown variable": (["recipe=${HOME}/x"], "an environment variable is ${oc.env:HOME}"),
    "no number": (["seed=five"], "seed=five: must be a whole number"),
    "a number that is too small": (["seed=-99999999999999999999"], "seed=-99999999999999999999: too large a number"),
    "too large a count": (["algorithm.learner.inner_steps=9223372036854775807"], "too large a number"),
    "a large number in a list": (["protocol.common.steps=[1,99999999999999999999]"], "too large a number"),
    "a large number in a sweep": (["-m", "seed=1,99999999999999999999"], "too large a number"),
    "a large number in a range": (["-m", "seed=range(1,99999999999999999999)"], "too large a number"),
    "a number as a list": (["seed=[1]"], "must be a whole number"),
    "a number as null": (["seed=null"], "field 'seed' is not Optional"),
    "no folder of data": (["data_dir=null"], "data_dir=null: must be a folder; leave it out for data"),
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
        ("bench", "rounds=x", "rounds=x: must be a whole number"),
        ("bench", "engines=loop", "engines=loop: must be a list, such as engines=[loop]"),
        ("prepare", "check=[1]", "check=[1]: must be true or false"),
        ("train", "algorithm.learner=0", "algorithm.learner=0: has parts, such as algorithm.learner._target_"),
        ("train", "algorithm.name=[1,2]", "algorithm.name=[1, 2]: must be text"),
        ("train", "dataset.name=2024", "dataset.name=2024: must be text; a number is quoted: 'dataset.name=\"2024\"'"),
        ("train", "dataset.reader=null", "dataset.reader=None: has parts"),
        ("train", "backbone.network=conv4", "backbone.network=conv4: has parts"),
        ("train", "train=null", "train=null: "),
        ("train", "validation=null", "validation=null: "),
        ("train", "resume=None", "resume=None: None is a text here; for no value type resume=null"),
        ("train", "+algorithm.learner.new=None", "for no value type algorithm.learner.new=null"),
        ("bench", "rounds=0", "rounds=0: must be a whole number >= 1"),
        ("table", "layout.title=[1,2]", "layout.title=[1,2]: "),
        ("train", "train.outer_lr=nan", "train.outer_lr=nan: must be a number >= 0"),
        ("train", "backbone.network.filters=many", "backbone.network.filters=many: must be a whole number\n"),
        ("train", "backbone.network.filters=3.5", "backbone.network.filters=3.5: must be a whole number\n"),
        ("train", "backbone.network.filters=0", "backbone.network.filters=0: must be a whole number >= 1"),
        ("train", "backbone.network.norm_eps=small", "backbone.network.norm_eps=small: must be a number\n"),
        ("train", "backbone.network.adapt_norm=1", "backbone.network.adapt_norm=1: must be true or false\n"),
        ("train", "dataset.reader.examples=lots", "dataset.reader.examples=lots: must be a whole number\n"),
        ("train", "train.select=bset", "train.select=bset: choose one of best, last"),
        ("train", "train.outer_optimizer=adm", "train.outer_optimizer=adm: "),
        ("train", "train.clip=0", "train.clip=0.0: must be above 0, or null"),
        ("train", "way=0", "way=0: must be a whole number >= 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line(call: Any, tool: str, word: str, said: str) -> None:
    done = call(tool, word)
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert not done.out or done.out.startswith("recipe ")
    assert said in done.err
    assert not list(Path().iterdir())
