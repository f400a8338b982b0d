"""The report is one file that needs nothing else, says what differs, and is written whole or not at all."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewshot.core.errors import FewshotError
from fewshot.report.gather import gather_runs
from fewshot.report.html_report import compare_settings, render_report

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def make_run(lab: Any) -> Callable[..., None]:
    """Write a run folder with a test, its episodes, and a log."""

    def make(name: str, test: str = "common-transductive", **changes: Any) -> None:
        lab.write(f"{name}/tests/{test}", command=f"train {name}", **changes)
        line = '{"step": 1, "tasks": 4, "train_seconds": 6, "validation_accuracy": 0.6}\n'
        (lab.folder / name / "metrics.jsonl").write_text(line)

    return make


def render(lab: Any, *words: str) -> tuple[str, list[str]]:
    runs, unread = gather_runs(lab.folder)
    return render_report(lab.folder, runs, lab.settings(*words, config="report"), unread)


def test_the_report_is_one_file_without_scripts_and_references_to_others(lab: Any, make_run: Any) -> None:
    make_run("<b>", settings={"train.steps": 1, HOSTILE: HOSTILE}, algorithm=HOSTILE, config="1")
    make_run("x", settings={"train.steps": 2}, algorithm="leo", config="2")
    make_run("x", "paper-inductive", algorithm="leo", protocol__name="paper", protocol__query=1, config="2")
    text, complaints = render(lab)
    assert complaints == []
    assert not re.search(r"https?:|<script|<link|@import|url\(|<b>x", text)
    assert set(re.findall(r'src="(.{0,26})', text)) == {"data:image/svg+xml;base64,"}
    assert text.count("&lt;script&gt;") >= 4  # method, cost, heading, key and value
    assert re.findall(r'<figure id="(\w+)"', text) == ["bars_omniglot", "curves_omniglot"]
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Results", "omniglot", "Details"]
    opening, omniglot, details = text.split("<h2>")[1:]
    assert "MAML paper" in omniglot and "MAML paper" not in opening + details
    for part in ("Tests by the protocol paper", "train.steps", "What it took", "train x", "train &lt;b&gt;"):
        assert part in details and part not in opening + omniglot, part


def test_tests_by_another_protocol_are_folded_away_only_where_the_first_table_leaves_them_out(
    lab: Any, make_run: Any
) -> None:
    make_run("a")
    make_run("b", "paper-inductive", dataset="mini", protocol__dataset="mini", protocol__name="paper")
    opening, *_, details = render(lab)[0].split("<h2>")[1:]
    assert "miniImageNet, accuracy" in opening and "Tests by the protocol" not in details


def test_only_settings_that_differ_are_shown_and_seeds_are_one_column(lab: Any, make_run: Any) -> None:
    for seed in (0, 1):
        make_run(f"maml{seed}", seed=seed, settings={"train.lr": 0.1, "train.clip": None, "a_": "x"}, config="m")
    make_run("leo", algorithm="leo", settings={"train.lr": 2, "train.clip": None, "train.own": True}, config="l")
    make_run("old", seed=2, settings=None)
    frame, missing = compare_settings(gather_runs(lab.folder)[0])
    assert frame.to_numpy().tolist() == [["train.lr", "2", "0.1"], ["train.own", "true", "–"]]
    assert list(frame.columns) == [
        "setting",
        *(f"{name}; omniglot 5-way 1-shot; seed {seeds}" for name, seeds in (("leo", "0"), ("maml", "0, 1"))),
    ]
    assert missing == 1


def test_what_cannot_be_read_or_shown_is_a_complaint_once_and_each_metric_has_a_table(lab: Any, make_run: Any) -> None:
    make_run("a")
    lab.write_regression("s")
    lab.write("bad")
    (lab.folder / "bad/record.json").write_text("{")
    text, complaints = render(lab)
    assert len(complaints) == 1 and text.count("bad/record.json cannot be read") == 1
    assert re.findall(r"<h3>(.*?)</h3>", text.split("<h2>")[1]) == [
        "Omniglot, accuracy in per cent",
        "Sinusoid, mean squared error",
    ]
    assert '<figure id="by_steps_sinusoid"' in text
    # A layout has tables of its own runs only; the rest of the report is about all.
    text, _ = render(lab, "layout=sinusoid", "published=false")
    assert re.findall(r"<h3>(.*?)</h3>", text.split("<h2>")[1]) == ["Sinusoids, mean squared error"]
    assert "2 records of maml" in text and '<figure id="bars_omniglot"' in text
    with pytest.raises(
        FewshotError, match=r"no run .* layout: the runs are of maml on .*; choose another, such as layout=comparison"
    ):
        render(lab, "layout=leo", "published=false")


def test_datasets_whose_names_are_alike_have_sections_and_pictures_of_their_own(lab: Any, make_run: Any) -> None:
    for name in ("cub", "CUB", "results"):
        make_run(f"of {name}", dataset=name, protocol__dataset=name, protocol__manifest=f"{len(name)}{name[0]}" * 32)
    text, complaints = render(lab, "published=false")
    assert complaints == []
    assert len(set(re.findall(r'<section id="(\w+)"', text))) == 5
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Results", "CUB (data)", "CUB", "results (data)", "Details"]
    assert len(set(re.findall(r'<figure id="(\w+)"', text))) == 6


# The tool


def test_the_tool_writes_the_report_below_the_runs_and_pictures_where_asked(
    call: Any, tmp_path: Path, make_run: Any
) -> None:
    make_run("runs/a")
    done = call("report", "runs=runs", "pictures=drawn", "format=pdf")
    assert (done.code, done.out.splitlines()[0]) == (0, "wrote runs/report.html")
    assert (tmp_path / "runs/report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["bars_omniglot.pdf", "curves_omniglot.pdf"]
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
