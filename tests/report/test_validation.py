"""The table by which a setting is chosen: validation scores where a sweep has several settings of one method."""

from __future__ import annotations

from typing import Any

import pytest

from fewshot.report.validation import render_validation

from .conftest import Lab


@pytest.fixture
def runs(lab: Lab) -> Any:
    """runs(rate=0.4, score=0.5, ...) is the records of both tests of a run."""

    def make(rate: float, score: float | None, **changes: Any) -> list[dict[str, Any]]:
        own: dict[str, Any] = {"settings__algorithm.learner.inner_lr": rate}
        own["validation"] = None if score is None else {"accuracy": score, "step": 200}
        return [lab.record(protocol__setting=each, **own, **changes) for each in ("inductive", "transductive")]

    return make


def two_rates(runs: Any, scores: tuple[float, float], **changes: Any) -> list[dict[str, Any]]:
    return [*runs(0.1, scores[0], **changes), *runs(0.2, scores[1], **changes)]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_settings_of_a_method_stand_beside_their_validation_scores(runs: Any) -> None:
    records = [*runs(0.1, 0.5), *runs(0.4, 0.6), *runs(0.4, 0.7, seed=1), *runs(1.0, None)]
    text = render_validation(records)
    assert text.startswith("Validation scores, by which to choose a setting (accuracy in per cent):\n\n")
    assert cells(text)[2:] == [
        ["maml, inner_lr=0.1", "5-way 1-shot", "50.00", "1"],
        ["maml, inner_lr=0.4", "5-way 1-shot", "**60.00**", "1"],
        ["maml, inner_lr=1.0", "5-way 1-shot", "–", "1"],
    ]


def test_settings_are_compared_over_the_seeds_that_all_have(runs: Any) -> None:
    both = [*runs(0.1, 0.5), *runs(0.1, 0.9, seed=1), *runs(0.4, 0.6), *runs(0.4, 0.7, seed=1)]
    assert [row[2:] for row in cells(render_validation(both))[2:]] == [["**70.00**", "2"], ["65.00", "2"]]
    one = [*runs(0.1, 0.5), *runs(0.4, 0.6), *runs(0.4, 0.1, seed=1)]
    assert [row[2:] for row in cells(render_validation(one))[2:]] == [["50.00", "1"], ["**60.00**", "1"]]
    none = [*runs(0.1, 0.5), *runs(0.4, 0.6, seed=1)]
    assert [row[2:] for row in cells(render_validation(none))[2:]] == [["50.00", "1"], ["60.00", "1"]]


def test_the_lowest_error_is_the_best(lab: Lab) -> None:
    test = {"mse": 0.3, "ci95": 0.1, "episodes": 600}
    records = [
        lab.record(test=test, validation={"mse": error}, settings={"algorithm.learner.inner_lr": rate})
        for rate, error in ((0.1, 0.25), (0.2, 0.125))
    ]
    text = render_validation(records)
    assert "mean squared error" in text and "accuracy" not in text
    assert [row[2] for row in cells(text)[2:]] == ["0.2500", "**0.1250**"]


def test_each_task_has_its_own_choice(runs: Any) -> None:
    records = [*two_rates(runs, (0.5, 0.4)), *two_rates(runs, (0.6, 0.7), shot=5, protocol__shot=5)]
    assert [row[2] for row in cells(render_validation(records))[2:]] == ["**50.00**", "40.00", "60.00", "**70.00**"]


def test_scores_of_other_validation_tasks_or_images_are_not_compared(runs: Any) -> None:
    for other in ({"settings__validation.query": 1}, {"data": {"fingerprint": "b" * 64, "about": {"size": 42}}}):
        records = [*two_rates(runs, (0.5, 0.4)), *two_rates(runs, (0.8, 0.9), **other)]
        rows = cells(render_validation(records))[2:]
        scores = [row[2] for row in rows]
        assert sorted([scores[:2], scores[2:]]) == [["**50.00**", "40.00"], ["80.00", "**90.00**"]]
        assert len({(row[0], row[1]) for row in rows}) == 4


def test_training_on_the_validation_classes_wins_nothing(runs: Any) -> None:
    records = [*runs(0.1, 0.5), *runs(0.2, 0.6), *runs(0.3, 0.9, protocol__train_on_val=True)]
    assert [row[2] for row in cells(render_validation(records))[2:]] == ["50.00", "**60.00**"]


def test_methods_with_the_same_settings_have_a_choice_each(runs: Any) -> None:
    records = [*two_rates(runs, (0.5, 0.4)), *two_rates(runs, (0.6, 0.7), algorithm="fomaml")]
    assert [row[2] for row in cells(render_validation(records))[2:]] == ["**50.00**", "40.00", "60.00", "**70.00**"]


def test_several_tests_of_one_training_are_one_row(runs: Any) -> None:
    tests: tuple[dict[str, Any], ...] = ({}, {"protocol__adaptation_steps": 10}, {"protocol__selection": "last"})
    records = [record for changes in tests for record in two_rates(runs, (0.1, 0.2), **changes)]
    assert [row[2] for row in cells(render_validation(records))[2:]] == ["10.00", "**20.00**"]


def test_a_number_in_a_name_is_explained(runs: Any) -> None:
    settings = [{f"settings__algorithm.learner.a{i}": value for i in range(4)} for value in (1, 2)]
    text = render_validation([*runs(0.1, 0.5, **settings[0]), *runs(0.2, 0.6, **settings[1])])
    assert [row[0] for row in cells(text)[2:]] == ["maml (1)", "maml (2)"]
    assert "\n\n- maml (1): inner_lr=0.1, a0=1, a1=1, a2=1, a3=1\n- maml (2): inner_lr=0.2, a0=2," in text


@pytest.mark.parametrize(
    "changes",
    [
        [{}, {"seed": 1}],
        [{}, {"rate": 0.1, "algorithm": "fomaml"}],
        [{}, {"rate": 0.1, "shot": 5, "protocol__shot": 5}],
        [{}, {"protocol__adaptation_steps": 5}],
        [{"rate": 0.1, "score": None}, {"score": None}],
    ],
    ids=["seeds", "methods", "tasks", "tests", "nothing validated"],
)
def test_where_there_is_nothing_to_choose_there_is_no_table(runs: Any, changes: list[dict[str, Any]]) -> None:
    records = [record for change in changes for record in runs(**{"rate": 0.4, "score": 0.5, **change})]
    assert render_validation(records) == ""


def test_an_older_record_may_have_no_validation(lab: Lab) -> None:
    records = [lab.record(settings={"algorithm.learner.inner_lr": rate}) for rate in (0.1, 0.2)]
    for record in records:
        del record["validation"]
    assert render_validation(records) == ""
