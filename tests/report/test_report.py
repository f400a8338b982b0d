"""The report is one file that needs nothing else, says what differs, and is written whole or not at all."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.report.gather import read_runs
from fewshot.report.html_report import compare_configurations, render_report

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def make_run(lab: Any) -> Callable[..., None]:
    """Write a run folder with record, episodes, a log, and a configuration where one is given."""

    def make(name: str, config: dict[str, Any] | str | None = None, **changes: Any) -> None:
        lab.write(name, command=f"train {name}", **changes)
        (lab.folder / name / "metrics.jsonl").write_text('{"step": 1, "accuracy": 0.5, "validation_accuracy": 0.6}\n')
        if config is not None:
            text = config if isinstance(config, str) else OmegaConf.to_yaml(OmegaConf.create(config))
            (lab.folder / name / "config.yaml").write_text(text)

    return make


def render(lab: Any, *words: str) -> tuple[str, list[str]]:
    runs, unread = read_runs(lab.folder)
    return render_report(lab.folder, runs, lab.settings(*words, config="report"), unread)


def test_the_report_is_one_file_without_scripts_and_references_to_others(lab: Any, make_run: Any) -> None:
    make_run("<b>", config={"train": {"steps": 1}, HOSTILE: HOSTILE}, algorithm=HOSTILE, recipe=HOSTILE)
    make_run("x", algorithm="leo", config={"train": {"steps": 2}})
    text, complaints = render(lab)
    assert complaints == []
    assert not re.search(r"https?:|<script|<link|@import|url\(|<b>x", text)
    assert set(re.findall(r'src="(.{0,26})', text)) == {"data:image/svg+xml;base64,"}
    assert re.findall(r'<figure id="(\w+)"', text) == ["bars", "curves"]
    assert "by_steps left out: nothing was tested after several numbers of adaptation steps" in text
    for part in ("leo (conv4), transductive", "train.steps", "What it took", "Holm", "train x", "train &lt;b&gt;"):
        assert part in text, part
    assert text.count("&lt;script&gt;") >= 4  # method, cost, heading, key and value


def test_only_keys_that_differ_are_shown_and_seeds_are_one_column(lab: Any, make_run: Any) -> None:
    same = {"way": 5, "run_dir": "somewhere"}
    for seed in (0, 1):
        config = {**same, "seed": seed, "train": {"lr": 0.1, "clip": None, "_target_": "a"}}
        make_run(f"maml{seed}", config, seed=seed)
        make_run(f"maml{seed}/tests/again", seed=seed)  # needs no configuration of its own
    make_run("leo", {**same, "seed": 0, "train": {"lr": 2, "clip": None, "own": True}}, algorithm="leo")
    make_run("bare", seed=2)
    frame, missing = compare_configurations(read_runs(lab.folder)[0])
    assert frame.to_numpy().tolist() == [["train.lr", "2", "0.1"], ["train.own", "true", "–"]]
    assert list(frame.columns) == [
        "key",
        "leo (conv4), transductive; omniglot 5-way 1-shot; seed 0",
        "maml (conv4), transductive; omniglot 5-way 1-shot; seed 0, 1",
    ]
    assert missing == 1


@pytest.mark.parametrize("damage", ["[1, 2", "- a\n- b", "\x00"])
def test_a_damaged_configuration_counts_as_missing(lab: Any, make_run: Any, damage: str) -> None:
    make_run("good", config={"way": 5})
    make_run("bad", config=damage, algorithm="leo")
    frame, missing = compare_configurations(read_runs(lab.folder)[0])
    assert (len(frame), missing) == (0, 1)


def test_what_cannot_be_read_is_a_complaint_once_and_accuracies_and_errors_have_a_table_each(
    lab: Any, make_run: Any
) -> None:
    make_run("a")
    lab.write_regression("s")
    lab.write("bad")
    (lab.folder / "bad/record.json").write_text("{")
    text, complaints = render(lab)
    assert len(complaints) == 1 and text.count("bad/record.json cannot be read") == 1
    assert "2 of 2 records have no readable config.yaml" in text
    assert re.findall(r"<h2>(Accuracy|Mean squared)", text) == ["Accuracy", "Mean squared"]
    assert '<figure id="by_steps"' in text
    # A layout has tables of its own runs only; the rest of the report is about all.
    text, _ = render(lab, "layout=sinusoid", "published=false")
    [tables] = re.findall(r'<section id="tables">(.*?)</section>', text, re.DOTALL)
    assert re.findall(r"<h2>(.*?)</h2>", tables) == ["Sinusoids, mean squared error"]
    assert "2 records of maml" in text and '<figure id="by_steps"' in text
    with pytest.raises(FewshotError, match="no run belongs to this layout: choose layout=comparison"):
        render(lab, "layout=leo", "published=false")


# The tool


def test_the_tool_writes_the_report_below_the_runs_and_pictures_where_asked(
    call: Any, tmp_path: Path, make_run: Any
) -> None:
    make_run("runs/a")
    done = call("report", "runs=runs", "pictures=drawn", "format=pdf")
    assert (done.code, done.out.splitlines()[0]) == (0, "wrote runs/report.html")
    assert (tmp_path / "runs/report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["bars.pdf", "curves.pdf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "runs"]  # Hydra left nothing


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("format=jpeg", "format=jpeg: choose one of png, pdf, svg"),
        ("published=maybe", "published=maybe: must be true or false"),
        ("out=runs", "out=runs: is a folder; name a file in it"),
        ("runs=runs/empty", "no record.json below runs/empty: make one with `python tools/train.py`"),
    ],
)
def test_nothing_is_written_where_it_fails(call: Any, tmp_path: Path, make_run: Any, word: str, message: str) -> None:
    make_run("runs/a")
    before = sorted(tmp_path.rglob("*"))
    done = call("report", *([] if word.startswith("runs=") else ["runs=runs"]), "pictures=drawn", word)
    assert done.code == 1 and message in done.err and len(done.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
