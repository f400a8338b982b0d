"""Plots show every run once, what was not measured alike apart, names as they are written, and fit on a page."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.report.labels import ALGORITHMS
from fewshot.report.pictures import Fit, draw_episode, draw_fits, episode, escape_math, fits, save_figure
from fewshot.report.plots import method_styles, plot_bars, plot_by_shots, plot_by_steps, plot_curves

MAML = "maml, ind."
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def run(lab: Any) -> Make:
    """A record of algorithm maml and seed 0, but for `changes`, of its training and its protocol alike."""

    def make(folder: str, accuracy: float = 0.5, ci95: float | None = 0.01, **changes: Any) -> dict[str, Any]:
        tested_shot = changes.pop("tested_shot", changes.get("shot", 1))
        record = lab.record(folder, test={"accuracy": accuracy, "ci95": ci95, "episodes": 600})
        record["protocol"] |= {"setting": "inductive"} | {k: v for k, v in changes.items() if k in record["protocol"]}
        record["protocol"] |= {"shot": tested_shot, "manifest": f"{tested_shot:064d}"}
        record |= {key: value for key, value in changes.items() if key in record}
        return record | {"config": f"{record['algorithm']} {record['shot']}"}

    return make


def labels(texts: Any) -> list[str]:
    return [text.get_text() for text in texts]


def coordinates(line: Any) -> dict[float, float]:
    return {x: round(float(y), 6) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}


# Bars


def test_each_task_is_a_panel_and_each_method_a_bar_with_its_interval(run: Make) -> None:
    runs = [run("a", 0.6), run("b", 0.7, algorithm="leo"), run("c", 0.8, shot=5), run("d", 0.9, query=1)]
    (figure,) = plot_bars(runs)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["omniglot 5-way 1-shot, 1 query", "omniglot 5-way 1-shot, 15 queries", "omniglot 5-way 5-shot"]
    bars = [[bar for bar in panel.patches if isinstance(bar, Rectangle)] for panel in figure.axes]
    assert [[round(bar.get_width(), 6) for bar in part] for part in bars] == [[90.0], [60.0, 70.0], [80.0]]
    assert labels(figure.axes[1].texts) == ["60.00 ± 1.00", "70.00 ± 1.00"]
    assert [labels(panel.get_yticklabels()) for panel in figure.axes] == [[MAML], [MAML, "leo, ind."], [MAML]]


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        # Several seeds are one bar with the interval over seeds; a later test with the same score counts once.
        ([("a", 0.5, 0), ("a/tests/again", 0.5, 0), ("b", 0.6, 1), ("c", 0.64, 2)], "58.00 ± {half:.2f}"),
        ([("a", 0.6, 0)], "60.00"),
    ],
)
def test_a_bar_has_the_mean_over_seeds_and_no_unknown_interval(run: Make, runs: list[Any], text: str) -> None:
    (figure,) = plot_bars([run(folder, score, None, seed=seed) for folder, score, seed in runs])
    half = stats.t.ppf(0.975, 2) * stats.sem([0.5, 0.6, 0.64]) * 100
    assert labels(figure.axes[0].texts) == [text.format(half=half)]


def test_no_interval_of_an_accuracy_passes_100_per_cent(run: Make) -> None:
    (figure,) = plot_bars([run("a", 0.98, seed=0), run("b", 0.9, seed=1)])
    (interval,) = (part for part in figure.axes[0].collections if isinstance(part, LineCollection))
    assert interval.get_segments()[0][:, 0].max() == pytest.approx(100)
    (text,) = labels(figure.axes[0].texts)
    assert text.startswith("94.00 ± 50.8")


def test_many_bars_are_several_panels_and_many_panels_several_pages(run: Make) -> None:
    figures = plot_bars([run(f"{i}", algorithm=f"mine{i}") for i in range(61)])
    assert [[len(panel.get_yticklabels()) for panel in figure.axes] for figure in figures] == [[21, 21], [19]]
    for figure in figures:
        width, height = figure.get_size_inches()
        assert width <= 12 and height <= 9


# Lines


def test_scores_after_several_numbers_of_steps_are_a_line_per_method_and_a_panel_per_task(run: Make) -> None:
    runs = [
        run(f"{name}{query}{steps}", 0.1 * steps, algorithm=name, adaptation_steps=steps, query=query)
        for name in ("maml", "fomaml")
        for query in (1, 15)
        for steps in (1, 5, 2)
    ]
    (figure,) = plot_by_steps([*runs, run("other", algorithm="leo", adaptation_steps="5 latent, 5 fine-tuning")])
    assert len(figure.axes) == 2
    for panel in figure.axes:
        assert [coordinates(container[0]) for container in panel.containers] == [{1: 10, 2: 20, 5: 50}] * 2
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("adaptation steps at test", "test accuracy (%)")
    assert labels(figure.legends[0].get_texts()) == [MAML, "fomaml, ind."]


def test_errors_of_a_regression_are_drawn_as_they_are(run: Make) -> None:
    runs = [run(str(steps), adaptation_steps=steps, way=1, dataset="sinusoid") for steps in (1, 10)]
    for each, error in zip(runs, (0.6, 0.3), strict=True):
        each["test"] = {"mse": error, "ci95": None, "episodes": 600}
    (panel,) = plot_by_steps(runs)[0].axes
    assert coordinates(panel.containers[0][0]) == {1: 0.6, 10: 0.3}
    assert panel.get_ylabel() == "test mean squared error"


def test_scores_by_shots_are_a_line_per_method(run: Make) -> None:
    runs = [run(f"{name}{k}", 0.1 * k, algorithm=name, shot=k) for name in ("maml", "reptile") for k in (1, 5)]
    (figure,) = plot_by_shots([*runs, run("w1", way=20, shot=1), run("w5", way=20, shot=5)])
    assert [panel.get_title() for panel in figure.axes] == ["omniglot 5-way K-shot", "omniglot 20-way K-shot"]
    assert [len(panel.containers) for panel in figure.axes] == [2, 1]


def test_a_run_tested_with_several_shots_is_a_line_with_its_own_test(run: Make) -> None:
    runs = [run(f"r/{k}", 0.1 * k, shot=1, tested_shot=k) for k in (1, 5, 10)]
    (figure,) = plot_by_shots([*runs, run("other", 0.9, shot=5)])
    by_test, by_training = figure.axes[0].containers
    assert coordinates(by_training[0]) == {1: 10, 5: 90}
    assert coordinates(by_test[0]) == {1: 10, 5: 50, 10: 100}
    assert labels(figure.legends[0].get_texts()) == [MAML, f"{MAML}, trained 1-shot"]


def test_there_is_no_figure_where_there_is_nothing_to_show(run: Make) -> None:
    assert [plot([run("r")]) for plot in (plot_by_steps, plot_by_shots, plot_curves)] == [[], [], []]


# Curves


def test_curves_of_trainings_on_two_datasets_share_no_panel(tmp_path: Path, run: Make) -> None:
    runs = []
    for dataset in ("mini", "omniglot"):  # the first was tested on the other's images
        (tmp_path / dataset).mkdir()
        line = {"step": 10, "tasks": 40, "train_seconds": 60.0, "validation_accuracy": 0.5}
        (tmp_path / dataset / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        runs.append(run(str(tmp_path / dataset / "tests/common-inductive")) | {"dataset": dataset})
    (figure,) = plot_curves(runs)
    assert [panel.get_title() for panel in figure.axes] == [
        *["mini 5-way 1-shot"] * 2,
        *["omniglot 5-way 1-shot"] * 2,
    ]
    assert [len(panel.lines) for panel in figure.axes] == [1] * 4


def test_each_training_is_a_line_over_minutes_and_tasks_and_seeds_look_alike(tmp_path: Path, run: Make) -> None:
    # A line for every tenth outer step, and a validation at every twentieth.
    log = [{"step": step, "tasks": 4 * step, "train_seconds": 6.0 * step} for step in range(10, 101, 10)]
    for line in log[1::2]:
        line["validation_accuracy"] = line["step"] / 100
    odd = '[1]\n{"step": 110, "validation_accuracy": 0.5, "tasks": 440}\n{"step": 120, "validation_acc'  # killed
    runs = []
    for name, shot in (("maml0", 1), ("maml1", 1), ("leo0", 1), ("maml5", 5)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + odd)
        for test in ("common-inductive", "paper-inductive"):  # two tests of one training
            where = str(folder / "tests" / test)
            runs.append(run(where, algorithm=name[:-1], seed=int(name[-1]), shot=shot))
    runs[4]["cost"]["extractor_seconds"] = 60.0
    (figure,) = plot_curves([*runs, run(str(tmp_path / "unlogged"))])
    assert [panel.get_title() for panel in figure.axes] == [f"omniglot 5-way {k}-shot" for k in (1, 1, 5, 5)]
    assert [panel.get_xlabel() for panel in figure.axes[:2]] == ["minutes of training", "tasks of training"]
    assert [len(panel.lines) for panel in figure.axes] == [3, 3, 1, 1]
    minutes, tasks, *_ = figure.axes
    assert coordinates(minutes.lines[0]) == {2: 20, 4: 40, 6: 60, 8: 80, 10: 100}
    assert coordinates(minutes.lines[2]) == {3: 20, 5: 40, 7: 60, 9: 80, 11: 100}  # with the feature extractor
    assert coordinates(tasks.lines[0]) == {80: 20, 160: 40, 240: 60, 320: 80, 400: 100}
    assert len({line.get_color() for line in tasks.lines}) == 2
    assert labels(figure.legends[0].get_texts()) == ["maml", "leo"]


# Colours, names, files


def test_an_algorithm_has_its_colour_and_marker_whatever_stands_beside_it(run: Make) -> None:
    alone = method_styles(["x"], [run("r", algorithm="mine")])
    among = method_styles(["a", "x", "y"], [run("r", algorithm=name) for name in ("leo", "mine", "mine")])
    assert among["x"] == alone["x"]
    assert (among["y"]["color"], among["y"]["marker"]) == (among["x"]["color"], among["x"]["marker"])
    assert among["y"]["linestyle"] != among["x"]["linestyle"]
    assert len(set(ALGORITHMS.values())) == len(ALGORITHMS)


def test_figures_are_saved_in_three_formats_and_dollars_are_no_mathematics(run: Make) -> None:
    (figure,) = plot_bars([run("r", algorithm="$x^2$ and $\\bad$")])
    assert figure.axes[0].get_yticklabels()[0].get_text() == escape_math("$x^2$ and $\\bad$, ind.")
    for format, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        first, again = save_figure(figure, format), save_figure(figure, format)
        assert first.startswith(start) and first == again
    with pytest.raises(FewshotError, match="format=svgg: choose one of png, pdf, svg"):
        save_figure(figure, "svgg")


# Single tasks


def images(ways: int, count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(ways, count, channels, 6, 6)) * 3 + 100


@pytest.mark.parametrize(
    ("names", "right", "wrong"),
    [
        (["x/a", "x/b", "x/$c"], "✓ b", "✗ \\$c"),
        (["a", "b", "a name that is much too long to be shown below an image"], "✓ 2", "✗ 3"),
    ],
)
def test_an_episode_shows_all_images_and_every_prediction(names: list[str], right: str, wrong: str) -> None:
    true = np.arange(3)[:, None].repeat(2, 1)
    predicted = true.copy()
    predicted[0, 1] = 2
    (panel,) = draw_episode(images(3, 4), images(3, 2), true, predicted, names).axes
    assert len(panel.images) == 3 * (4 + 2)
    shown = np.concatenate([np.asarray(image.get_array()).ravel() for image in panel.images])
    assert (shown.min(), shown.max()) == (0, 1)
    texts = labels(panel.texts)
    assert texts.count(right) == 2 and texts.count(wrong) == 1 and "queries: 5 of 6 right" in texts
    colours = [frame.get_edgecolor() for frame in panel.patches]
    assert sorted(map(colours.count, set(colours))) == [1, 5, 12]  # wrong, right, support


@pytest.mark.parametrize("channels", [1, 3])
def test_an_episode_is_a_picture_in_grey_or_colour(channels: int) -> None:
    labels = np.arange(2)[:, None].repeat(3, 1)
    with Image.open(io.BytesIO(episode(images(2, 1, channels), images(2, 3, channels), labels, labels, "ab"))) as made:
        assert made.width > 300 and made.height > 100


def test_an_episode_of_one_value_is_drawn_and_one_of_four_channels_refused() -> None:
    labels = np.zeros((1, 1), dtype=int)
    draw_episode(np.ones((1, 1, 1, 4, 4)), np.ones((1, 1, 1, 4, 4)), labels, labels, ["a"])
    with pytest.raises(FewshotError, match="images of 4 channels cannot be drawn"):
        draw_episode(images(1, 1, 4), images(1, 1, 4), labels, labels, ["a"])


def test_fits_are_a_panel_per_task_with_one_legend() -> None:
    x = np.linspace(-5, 5, 20)
    curves = {"before": 0 * x, "after 1": 0.5 * np.sin(x)}
    samples = np.stack([np.sin(x) + 0.1 * i for i in range(7)])
    tasks = [Fit(x, np.sin(x), x[:3], np.sin(x[:3]), curves, samples) for _ in range(3)]
    figure = draw_fits(tasks)
    assert [len(panel.lines) for panel in figure.axes] == [11, 11, 11]
    texts = labels(figure.legends[0].get_texts())
    assert sorted(texts) == ["after 1", "before", "samples", "support", "truth"]
    colours = {line.get_color() for panel in figure.axes for line in panel.lines if line.get_label() == "after 1"}
    assert len(colours) == 1
    assert fits(tasks[:1]).startswith(b"\x89PNG")
