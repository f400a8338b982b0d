"""The report is one file that needs nothing else, says what differs, and is written whole or not at all."""

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.experiment import cli
from fewshot.report.configurations import differences
from fewshot.report.gather import read_runs
from fewshot.report.html_report import report
from fewshot.report.records import write_record

TEMPLATE = json.loads(
    (CONF.parent / "results/omniglot_quarter_hour/maml/test-1s15q-none-inductive-1steps-600e0/record.json").read_text()
)
HOSTILE = "<script>alert('x')</script>"


def make(folder: Path, *, config: dict[str, Any] | str | None = None, **changes: Any) -> Path:
    """A run folder with record, episodes, a log, and a configuration where one is given."""
    scores = np.random.default_rng(len(folder.name)).uniform(0.4, 0.6, 20).round(6)
    record = copy.deepcopy(TEMPLATE) | {"recipe": None, "command": f"train {folder.name}"} | changes
    record["protocol"] |= {"episodes": 20}
    record["test"] = {"accuracy": float(scores.mean()), "ci95": 0.02, "episodes": 20}
    record["config"] = record["algorithm"]
    write_record(folder, record, {"accuracy": scores})
    (folder / "metrics.jsonl").write_text('{"step": 1, "accuracy": 0.5, "validation_accuracy": 0.6}\n')
    if config is not None:
        text = config if isinstance(config, str) else OmegaConf.to_yaml(OmegaConf.create(config))
        (folder / "config.yaml").write_text(text)
    return folder


def regression(folder: Path) -> None:
    record = copy.deepcopy(TEMPLATE) | {"dataset": "sinusoid", "way": 1, "shot": 10}
    record["protocol"] |= {"dataset": "sinusoid", "way": 1, "shot": 10, "adaptation_steps": [1, 5], "episodes": 20}
    record["test"] = {"mse": {"1": 0.5, "5": 0.25}, "ci95": {"1": 0.1, "5": 0.1}, "episodes": 20}
    write_record(folder, record, {"mse_1": np.full(20, 0.5), "mse_5": np.full(20, 0.25)})


def written(runs: Path, *words: str) -> tuple[str, list[str]]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = OmegaConf.to_container(compose("report", list(words)), resolve=True)
    assert isinstance(settings, dict)
    found, unread = read_runs(runs)
    return report(runs, found, {str(key): value for key, value in settings.items()}, unread)


def test_the_report_is_one_file_without_scripts_and_references_to_others(tmp_path: Path) -> None:
    make(tmp_path / "a", config={"train": {"steps": 1}})
    make(tmp_path / "b", algorithm="leo", config={"train": {"steps": 2}})
    text, complaints = written(tmp_path)
    assert complaints == []
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert set(re.findall(r'src="(.{0,26})', text)) == {"data:image/svg+xml;base64,"}
    assert re.findall(r'<figure id="(\w+)"', text) == ["bars", "curves"]
    assert "by_steps left out: nothing was tested after several numbers of adaptation steps" in text
    for part in ("maml (conv4), inductive", "train.steps", "What it took", "Holm", "train a", "train b"):
        assert part in text, part


def test_names_in_records_configurations_and_folders_are_text(tmp_path: Path) -> None:
    make(tmp_path / "<b>", algorithm=HOSTILE, command=HOSTILE, config={HOSTILE: HOSTILE})
    make(tmp_path / "x", config={"other": 1})
    text, _ = written(tmp_path)
    assert "<script" not in text and "<b>/" not in text
    assert text.count("&lt;script&gt;") >= 5  # method, cost, heading, key and value, command


def test_only_keys_that_differ_are_shown_and_seeds_are_one_column(tmp_path: Path) -> None:
    same = {"way": 5, "run_dir": "somewhere"}
    for seed in (0, 1):
        make(tmp_path / f"maml{seed}", seed=seed, config={**same, "seed": seed, "train": {"lr": 0.1, "clip": None}})
    make(tmp_path / "leo", algorithm="leo", config={**same, "seed": 0, "train": {"lr": 0.2, "clip": None, "own": True}})
    frame, missing, complaints = differences(read_runs(tmp_path)[0])
    assert frame.to_numpy().tolist() == [["train.lr", "0.2", "0.1"], ["train.own", "true", "–"]]
    assert list(frame.columns) == [
        "key",
        "leo (conv4), inductive; omniglot 5-way 1-shot; seed 0",
        "maml (conv4), inductive; omniglot 5-way 1-shot; seed 0, 1",
    ]
    assert missing == complaints == []


def test_runs_without_configuration_are_said_and_tests_below_a_run_are_not(tmp_path: Path) -> None:
    make(tmp_path / "run", config={"way": 5})
    make(tmp_path / "run/tests/again", seed=1)
    make(tmp_path / "bare", seed=2)
    _, missing, _ = differences(read_runs(tmp_path)[0])
    assert missing == [str(tmp_path / "bare")]
    assert "no config.yaml beside 1 of 3 records" in written(tmp_path)[0]


@pytest.mark.parametrize("damage", ["[1, 2", "- a\n- b", "\x00"])
def test_a_damaged_configuration_is_a_complaint_and_the_rest_is_there(tmp_path: Path, damage: str) -> None:
    make(tmp_path / "good", config={"way": 5})
    make(tmp_path / "bad", algorithm="leo", config=damage)
    text, complaints = written(tmp_path)
    (line,) = complaints
    assert "bad/config.yaml cannot be read as a configuration" in line and "\n" not in line
    assert "What could not be read or compared" in text and "leo (conv4)" in text


def test_an_unreadable_record_is_a_complaint_once(tmp_path: Path) -> None:
    make(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/record.json").write_text("{")
    text, complaints = written(tmp_path)
    assert len(complaints) == 1 and text.count("bad/record.json cannot be read") == 1


def test_accuracies_and_errors_have_a_table_each(tmp_path: Path) -> None:
    make(tmp_path / "a")
    regression(tmp_path / "s")
    text, complaints = written(tmp_path)
    assert complaints == []
    assert re.findall(r"<h2>(Accuracy|Mean squared)", text) == ["Accuracy", "Mean squared"]
    assert '<figure id="by_steps"' in text


@pytest.mark.parametrize(("layout", "title"), [("omniglot", "Omniglot, acc"), ("sinusoid", "Sinusoids, mean")])
def test_a_layout_has_tables_of_its_own_runs_only(tmp_path: Path, layout: str, title: str) -> None:
    make(tmp_path / "a")
    regression(tmp_path / "s")
    text, complaints = written(tmp_path, f"layout={layout}", "published=false")
    assert complaints == []
    [tables] = re.findall(r'<section id="tables">(.*?)</section>', text, re.DOTALL)
    assert re.findall(r"<h2>(.*?)</h2>", tables)[0].startswith(title) and tables.count("<h2>") == 1
    assert "2 records of maml" in text and '<figure id="by_steps"' in text  # the rest is of all


def test_a_layout_without_runs_shows_what_is_published_or_says_so(tmp_path: Path) -> None:
    make(tmp_path / "a")
    text, complaints = written(tmp_path, "layout=leo")
    assert complaints == ["no run of 1 is of this layout: it shows published figures only"]
    assert "LEO paper, Table 2" in text
    with pytest.raises(FewshotError, match="is of this layout: take layout=comparison"):
        written(tmp_path, "layout=leo", "published=false")


def test_without_runs_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(FewshotError, match="no record.json below"):
        written(tmp_path)


# The tool


def tool(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    import importlib.util

    path = CONF.parent / "tools/report.py"
    spec = importlib.util.spec_from_file_location("report_tool", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    cli.main(module.write_report, "report")


def test_the_tool_writes_the_report_below_the_runs_and_pictures_where_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = make(tmp_path / "runs/a").parent
    monkeypatch.chdir(tmp_path)
    tool(monkeypatch, f"runs={runs}", f"pictures={tmp_path / 'drawn'}", "format=pdf")
    assert (runs / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["bars.pdf", "curves.pdf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "runs"]  # Hydra left nothing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=jpeg"], "format=jpeg: no such format"),
        (["published=maybe"], "published=maybe: must be true or false"),
        (["cost=1"], "cost=1: must be true or false"),
        (["out={folder}"], "a folder; name a file in it"),
        (["runs={folder}/empty"], "no record.json below"),
    ],
)
def test_nothing_is_written_where_it_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    make(tmp_path / "runs/a")
    before = sorted(tmp_path.rglob("*"))
    given = [f"runs={tmp_path / 'runs'}", f"pictures={tmp_path / 'drawn'}"]
    with pytest.raises(SystemExit):
        tool(monkeypatch, *given, *(word.format(folder=tmp_path) for word in words))
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
