"""Pictures show every run once, what was not measured alike apart, and names as they are written."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.report.charts import bars, by_shots, by_steps
from fewshot.report.curves import curves
from fewshot.report.labels import ALGORITHMS
from fewshot.report.pictures import Fit, draw_episode, draw_fits, episode, fits
from fewshot.report.records import read_record
from fewshot.report.styles import STYLES, plain, saved, styles_of

# A test after 1 step of 600 episodes, omniglot 5-way 1-shot, of a run on the same.
TEMPLATE = read_record(
    CONF.parent / "results/omniglot_quarter_hour/maml/test-1s15q-none-inductive-1steps-600e0/record.json"
)


def run(folder: str, accuracy: float = 0.5, ci95: float | None = 0.01, **changes: Any) -> dict[str, Any]:
    """A record of algorithm maml and seed 0, but for `changes`, of its training and its protocol alike."""
    record = copy.deepcopy(TEMPLATE) | {"folder": folder, "recipe": None}
    record["test"] = {"accuracy": accuracy, "ci95": ci95, "episodes": 600}
    for key, value in changes.items():
        for part in (record, record["protocol"]):
            if key in part:
                part[key] = value
    record["protocol"]["shot"] = changes.get("tested_shot", record["shot"])
    record["protocol"]["manifest"] = f"{record['protocol']['shot']:064d}"
    record["config"] = changes.get("config", f"{record['algorithm']} {record['shot']}")
    return record


def abscissae(line: Any) -> list[float]:
    return list(line.get_xdata())


def heights(line: Any) -> list[float]:
    return [round(float(y), 6) for y in line.get_ydata()]


# Bars


def test_each_protocol_is_a_panel_and_each_method_a_bar_with_its_interval() -> None:
    runs = [run("a", 0.6), run("b", 0.7, algorithm="leo"), run("c", 0.8, shot=5), run("d", 0.9, query=1)]
    figure = bars(runs)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == [
        "omniglot 5-way 1-shot, 1 query",
        "omniglot 5-way 1-shot, 15 queries",
        "omniglot 5-way 5-shot",
    ]
    bars_of = [[bar for bar in panel.patches if isinstance(bar, Rectangle)] for panel in figure.axes]
    widths = [sorted(round(bar.get_width(), 6) for bar in part) for part in bars_of]
    assert widths == [[90.0], [60.0, 70.0], [80.0]]
    assert [text.get_text() for text in figure.axes[1].texts] == ["60.00 ± 1.00", "70.00 ± 1.00"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "maml (conv4), inductive",
        "leo (conv4), inductive",
    ]


def test_several_seeds_are_one_bar_with_the_interval_over_seeds() -> None:
    scores = [0.5, 0.6, 0.64]
    (panel,) = bars([run(f"r{seed}", score, seed=seed) for seed, score in enumerate(scores)]).axes
    half = stats.t.ppf(0.975, 2) * stats.sem(scores) * 100
    assert [text.get_text() for text in panel.texts] == [f"58.00 ± {half:.2f}"]


def test_bars_leave_out_further_tests_of_a_run_after_other_numbers_of_steps() -> None:
    own, further = run("r", 0.6, adaptation_steps=3), run("r/tests/5", 0.7, adaptation_steps=5)
    (panel,) = bars([further, own]).axes
    assert [text.get_text() for text in panel.texts] == ["60.00 ± 1.00"]


def test_an_unknown_interval_is_not_drawn() -> None:
    (panel,) = bars([run("r", 0.6, None)]).axes
    assert [text.get_text() for text in panel.texts] == ["60.00"]


# Lines


def test_scores_after_several_numbers_of_steps_are_a_line_per_method_and_a_panel_per_protocol() -> None:
    runs = [
        run(f"{name}{query}{steps}", 0.1 * steps, algorithm=name, adaptation_steps=steps, query=query)
        for name in ("maml", "fomaml")
        for query in (1, 15)
        for steps in (1, 5, 2)
    ]
    figure = by_steps([*runs, run("other", algorithm="leo", adaptation_steps="5 latent, 5 fine-tuning")])
    assert len(figure.axes) == 2
    for panel in figure.axes:
        drawn = [container[0] for container in panel.containers]
        assert [abscissae(line) for line in drawn] == [[1, 2, 5]] * 2
        assert [heights(line) for line in drawn] == [[10, 20, 50]] * 2
        assert panel.get_xlabel() == "adaptation steps at test"
        assert panel.get_ylabel() == "test accuracy (%)"


def test_errors_of_a_regression_are_drawn_as_they_are() -> None:
    runs = [run(str(steps), adaptation_steps=steps, way=1, dataset="sinusoid") for steps in (1, 10)]
    for each, error in zip(runs, (0.6, 0.3), strict=True):
        each["test"] = {"mse": error, "ci95": None, "episodes": 600}
    (panel,) = by_steps(runs).axes
    assert heights(panel.containers[0][0]) == [0.6, 0.3]
    assert panel.get_ylabel() == "test mean squared error"
    saved(by_steps(runs))


def test_scores_by_shots_are_a_line_per_method() -> None:
    runs = [run(f"{name}{k}", 0.1 * k, algorithm=name, shot=k) for name in ("maml", "reptile") for k in (1, 5)]
    figure = by_shots([*runs, run("w1", way=20, shot=1), run("w5", way=20, shot=5)])
    assert [panel.get_title() for panel in figure.axes] == ["omniglot 5-way K-shot", "omniglot 20-way K-shot"]
    assert [len(panel.containers) for panel in figure.axes] == [2, 1]


def test_a_run_tested_with_several_shots_is_a_line_with_its_own_test() -> None:
    own, *further = [run(f"r/{k}", 0.1 * k, shot=1, tested_shot=k, config="one") for k in (1, 5, 10)]
    (panel,) = by_shots([own, *further]).axes
    (line,) = [container[0] for container in panel.containers]
    assert (abscissae(line), heights(line)) == ([1, 5, 10], [10, 50, 100])


def test_a_picture_without_anything_to_show_says_so() -> None:
    with pytest.raises(FewshotError, match="after several numbers of adaptation steps"):
        by_steps([run("r")])
    with pytest.raises(FewshotError, match="with several shots"):
        by_shots([run("r")])
    with pytest.raises(FewshotError, match="no metrics.jsonl beside the records"):
        curves([run("nowhere")])


def test_a_run_that_is_there_twice_is_refused() -> None:
    with pytest.raises(FewshotError, match="first and second are both maml .* with seed 0, .* 0.5 and 0.6: take one"):
        bars([run("first", 0.5), run("second", 0.6)])


# Curves


def logged(folder: Path, lines: int = 40, **changes: Any) -> dict[str, Any]:
    """A run with a line for each outer step, a validation at every tenth, and a last line cut short."""
    folder.mkdir()
    log = [{"step": step, "accuracy": None if step == 2 else step / 100} for step in range(1, lines + 1)]
    for line in log[9::10]:
        line["validation_accuracy"] = line["step"] / 50
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 41, "acc')
    return run(str(folder), **changes)


def test_each_run_is_a_line_and_seeds_share_colour_and_legend(tmp_path: Path) -> None:
    runs = [
        logged(tmp_path / f"{name}{seed}", algorithm=name, seed=seed) for name in ("maml", "leo") for seed in (0, 1)
    ]
    figure = curves([*runs, run(str(tmp_path / "unlogged"))])
    training, validation = figure.axes
    assert len(training.lines) == len(validation.lines) == 4
    assert len({line.get_color() for line in training.lines}) == 2
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["maml (conv4), inductive, seeds 0, 1", "leo (conv4), inductive, seeds 0, 1"]
    assert (abscissae(validation.lines[0]), heights(validation.lines[0])) == ([10, 20, 30, 40], [20, 40, 60, 80])
    # The mean of the last two lines; the second step has no score.
    assert heights(training.lines[0])[:3] == [1, 2, 3.5]
    assert len(abscissae(training.lines[0])) == 39


def test_what_was_trained_for_other_tasks_has_panels_of_its_own(tmp_path: Path) -> None:
    figure = curves([logged(tmp_path / "one"), logged(tmp_path / "five", shot=5)])
    assert [panel.get_title() for panel in figure.axes] == [
        f"omniglot 5-way {shot}-shot: {part}" for shot in (1, 5) for part in ("training", "validation")
    ]


# Colours, names, files


def test_an_algorithm_has_its_colour_and_marker_whatever_stands_beside_it() -> None:
    alone = styles_of(["x"], [run("r", algorithm="mine")])
    among = styles_of(["a", "x", "y"], [run("r", algorithm=name) for name in ("leo", "mine", "mine")])
    assert among["x"] == alone["x"]
    assert (among["y"]["color"], among["y"]["marker"]) == (among["x"]["color"], among["x"]["marker"])
    assert among["y"]["linestyle"] != among["x"]["linestyle"]


def test_every_algorithm_that_tables_order_has_a_look_of_its_own() -> None:
    assert set(STYLES) == set(ALGORITHMS)
    assert len(set(STYLES.values())) == len(STYLES)


def test_numbers_in_the_names_of_methods_are_put_in_order_as_numbers() -> None:
    names = [f"maml, {steps} adaptation steps" for steps in (10, 9)]
    assert list(styles_of(["leo", *names], [run("r", algorithm=name) for name in ("leo", "maml", "maml")])) == [
        *reversed(names),
        "leo",
    ]


def test_a_run_that_is_there_twice_with_the_same_score_counts_once() -> None:
    (panel,) = bars([run("first/tests/again", 0.6), run("first", 0.6), run("other", 0.7, seed=1)]).axes
    half = stats.t.ppf(0.975, 1) * stats.sem([0.6, 0.7]) * 100
    assert [text.get_text() for text in panel.texts] == [f"65.00 ± {half:.2f}"]


def test_the_same_figure_makes_the_same_file_of_each_format() -> None:
    for format, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        first, second = (saved(bars([run("r", backbone="$x^2$ and $\\bad$")]), format) for _ in range(2))
        assert first.startswith(start) and first == second
    with pytest.raises(FewshotError, match="format=svgg: no such format"):
        saved(bars([run("r")]), "svgg")


def test_dollars_are_no_mathematics() -> None:
    figure = bars([run("r", backbone="$5 to $6")])
    saved(figure)
    assert figure.axes[0].get_yticklabels()[0].get_text() == plain("maml ($5 to $6), inductive")


# Single tasks


def images(ways: int, count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(ways, count, channels, 6, 6)) * 3 + 100


def test_an_episode_shows_all_images_and_names_what_was_wrong() -> None:
    true = np.arange(3)[:, None].repeat(2, 1)
    predicted = true.copy()
    predicted[0, 1] = 2
    names = ["a", "<script>", "a name that is much too long to be shown"]
    (panel,) = draw_episode(images(3, 4), images(3, 2), true, predicted, names).axes
    assert len(panel.images) == 3 * (4 + 2)
    shown = np.concatenate([np.asarray(image.get_array()).ravel() for image in panel.images])
    assert (shown.min(), shown.max()) == (0, 1)
    texts = [text.get_text() for text in panel.texts]
    assert texts.count("✓") == 5 and texts.count("✗") == 1
    assert "queries: 5 of 6 right" in texts and "<script>" in texts and "a na… shown" in texts
    frames = [frame.get_edgecolor() for frame in panel.patches]
    assert len(frames) == 6 and len(set(frames)) == 2 and frames.count(frames[1]) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_an_episode_is_a_picture_in_grey_or_colour(channels: int) -> None:
    labels = np.arange(2)[:, None].repeat(3, 1)
    with Image.open(io.BytesIO(episode(images(2, 1, channels), images(2, 3, channels), labels, labels, "ab"))) as made:
        assert made.width > 300 and made.height > 100


def test_an_episode_of_one_value_is_drawn_and_one_of_four_channels_refused() -> None:
    labels = np.zeros((1, 1), dtype=int)
    flat = np.ones((1, 1, 1, 4, 4))
    assert episode(flat, flat, labels, labels, ["a"], "svg").startswith(b"<?xml")
    with pytest.raises(FewshotError, match="images of 4 channels cannot be drawn"):
        episode(images(1, 1, 4), images(1, 1, 4), labels, labels, ["a"])


def sine(samples: int | None) -> Fit:
    x = np.linspace(-5, 5, 20)
    drawn = None if samples is None else np.stack([np.sin(x) + 0.1 * i for i in range(samples)])
    return Fit(x, np.sin(x), x[:3], np.sin(x[:3]), {"before": 0 * x, "after 1": 0.5 * np.sin(x)}, drawn)


def test_fits_are_a_panel_per_task_with_one_legend() -> None:
    figure = draw_fits([sine(None), sine(7), sine(None)])
    assert [len(panel.lines) for panel in figure.axes] == [4, 11, 4]
    assert not any(panel.get_legend() for panel in figure.axes)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(texts) == ["after 1", "before", "samples", "support", "truth"]
    assert fits([sine(2)], "pdf").startswith(b"%PDF")
    with pytest.raises(FewshotError, match="at least one task"):
        fits([])


def test_a_curve_keeps_its_colour_in_tasks_that_lack_others() -> None:
    x = np.linspace(0, 1, 4)
    lacking = Fit(x, x, x[:1], x[:1], {"after 1": x})
    lines = [line for panel in draw_fits([sine(None), lacking]).axes for line in panel.lines]
    colours = [line.get_color() for line in lines if line.get_label() == "after 1"]
    assert len(colours) == 2 and colours[0] == colours[1]
