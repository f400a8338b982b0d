"""The tests of a run: what its protocols ask for, the scores of the episodes, and the record of each setting."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fewshot.algorithms.learner import backbone_constants, override_test_steps
from fewshot.core.checks import check_number
from fewshot.core.distributed import is_main, main_first, on_rank_zero, rank_slice
from fewshot.core.errors import FewshotError
from fewshot.core.progress import print_note, progress_bar
from fewshot.engine.evaluate import evaluate_settings, explain_nan
from fewshot.engine.probe import probe
from fewshot.episodes import Tasks
from fewshot.experiment.build import Experiment
from fewshot.experiment.make_record import Scores, make_record, query_variances, task_fields, title
from fewshot.experiment.protocol import Protocol
from fewshot.experiment.query_table import check_same_scores, check_size, score_labels, write_predictions
from fewshot.report.records import PREDICTIONS, Record, read_record, write_record
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.checkpoint import digest_tensors
from fewshot.training.trained import Trained


@dataclass(frozen=True)
class PlannedTest:
    """A protocol on its tasks."""

    protocol: Protocol
    settings: Sequence[str]  # transductive, inductive or, where they differ, both
    tasks: Tasks
    steps: list[int]  # the numbers of adaptation steps to test

    def folder(self, tests: Path, setting: str, parts: Sequence[str] = ()) -> Path:
        """The folder of the test in one setting, below that of all tests; `parts` tell it apart from others."""
        return tests / "-".join([self.protocol.slug, *parts, setting])


def plan_tests(run: Experiment, trained: Trained | None = None) -> list[PlannedTest]:
    """The tests that the protocols of a run ask for.

    Args:
        trained: the parameters to test, which may mix queries where those of the start do not.

    Raises:
        FewshotError: there is no such split, its classes cannot give such tasks, or the learner has no such steps.
    """
    if trained is not None:
        probe(run.learner, run.first_task, trained.params, trained.state)
    independent = run.behaviour.queries_independent
    for protocol in run.protocols:
        if trained is not None and independent and protocol.setting == "transductive":
            print_note(
                f"{protocol.key}.setting=transductive: the test is called inductive, since no prediction depends on "
                "another query here"
            )
    return [
        PlannedTest(protocol, protocol.settings(independent), run.protocol_tasks(protocol), _steps(run, protocol))
        for protocol in run.protocols
    ]


def _steps(run: Experiment, protocol: Protocol) -> list[int]:
    """The numbers of adaptation steps of a protocol, sorted; the learner's own where the protocol names none."""
    given, learner, key = protocol.steps, run.learner, f"{protocol.key}.steps"
    steps = given if isinstance(given, list) else [learner.test_steps if given is None else given]
    for count in steps:
        check_number(key, count, int, 0)
    if not steps or len(set(steps)) < len(steps):
        raise FewshotError(f"{key}={given}: name numbers of adaptation steps, each once, such as [1,5,10]")
    several_loops = isinstance(given, list) and hasattr(learner, "adaptation_steps")
    # False where `test_steps` is only the default of `Learner`.
    counts = ("test_steps" in vars(learner) and getattr(learner, "_counts_steps", True)) or learner.test_steps
    if several_loops or (given is not None and not counts):
        name = run.cfg.algorithm.name
        raise FewshotError(f"{key}={given}: {name} has no single inner loop with steps to count; set null")
    return sorted(steps)


@main_first
def _checked_plan(run: Experiment, trained: Trained, predictions: bool) -> list[PlannedTest]:
    planned = plan_tests(run, trained)
    for test in planned if predictions else ():
        check_size(test.tasks, test.protocol.episodes, test.protocol.key)
    return planned


def write_tests(
    run: Experiment,
    trained: Trained,
    tests: Path,
    parts: Sequence[str] = (),
    *,
    again: bool = False,
    predictions: bool = False,
    trained_cfg: DictConfig | None = None,
    train_fingerprint: str | None = None,
) -> list[Path]:
    """Make the planned tests that have no record of these parameters yet, the inductive one of each protocol last.

    Args:
        tests: the folder of all tests.
        parts: words in the name of each test's folder.
        again: make those that have a record too.
        predictions: leave what is predicted for each query too, in classification.
        trained_cfg: the configuration of the training, where the run has that of a later test.
        train_fingerprint: of the data of the training, likewise.

    Returns:
        The folders of the planned tests.

    Raises:
        FewshotError: a score is not finite, a folder holds a test of another run, or a test that is repeated for its
            predictions has other scores than in its record.
    """
    folders, training = [], task_fields(trained_cfg or run.cfg, trained.steps)
    training["train"]["fingerprint"] = _fingerprint(run, trained)
    for test in _checked_plan(run, trained, predictions):
        by_setting = {setting: test.folder(tests, setting, parts) for setting in test.settings}
        missing = [
            name for name, path in by_setting.items() if not _is_tested(path, run, trained, test, training, again)
        ]
        wanted = missing
        if predictions:
            wanted = [name for name, path in by_setting.items() if name in missing or not _has_predictions(path)]
        regression = wanted and isinstance(test.tasks, Regression)
        variances = query_variances(test.tasks, test.protocol.episodes) if regression else None
        for setting, result in (_run(run, trained, test, wanted, predictions) if wanted else {}).items():
            folder = by_setting[setting]
            if setting in missing:
                scores, steps = result.scores, result.steps
                record = make_record(run, trained, test.protocol, test.tasks, setting, scores, steps, variances)
                record |= training
                record["test"] |= {"diverged": result.diverged} if result.diverged else {}
                if train_fingerprint is not None:
                    record["data"]["train_fingerprint"] = train_fingerprint
                if is_main():
                    (folder / PREDICTIONS).unlink(missing_ok=True)  # of the record that this one replaces
                write_record(folder, record, scores if variances is None else {**scores, "variance": variances})
            else:
                check_same_scores(folder, result.scores)
            if predictions:
                assert isinstance(test.tasks, Sampler)
                write_predictions(folder, test.tasks, result.labels)
        folders += by_setting.values()
    return folders


@on_rank_zero
def _fingerprint(run: Experiment, trained: Trained) -> str:
    """A hash of all that a test depends on of the trained learner."""
    groups = {"params": trained.params, "state": trained.state, "constants": backbone_constants(run.learner.backbone)}
    return digest_tensors({f"{group}/{name}": value for group, ts in groups.items() for name, value in ts.items()})


@on_rank_zero
def _has_predictions(folder: Path) -> bool:
    """Whether the predictions of a test are there, in the columns of this version."""
    path = folder / PREDICTIONS
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        return "true" in file.readline().strip().split(",")


@on_rank_zero
def _is_tested(
    folder: Path, run: Experiment, trained: Trained, test: PlannedTest, training: Record, again: bool
) -> bool:
    """Whether a folder holds the record of this very test, which is not to be made `again`.

    Not where the protocol or the parameters were others.

    Raises:
        FewshotError: it holds a test of another run, or without `again` a damaged record.
    """
    path = folder / "record.json"
    if not path.exists():
        return False
    try:
        record = read_record(path)
    except FewshotError:
        if again:
            return False
        raise
    if (record["config"], record["seed"]) != (training["config"], run.cfg.seed):
        raise FewshotError(f"{folder}: holds a test of another run; choose another folder")
    kept, own = record["train"], training["train"]
    same_weights = (kept.get("steps"), record["protocol"]["selection"]) == (trained.steps, trained.selection)
    same_weights &= kept.get("fingerprint", own["fingerprint"]) == own["fingerprint"]  # an older record does not say
    same_episodes = test.protocol.is_of(record)
    if test.protocol.split != "test":  # whose episodes once were those of the training or of the validation
        same_episodes &= record["protocol"]["manifest"] == test.tasks.manifest(0, test.protocol.episodes)
    return same_weights and same_episodes and not again


@dataclass
class Result:
    """What a test found in one setting, by number of steps."""

    scores: Scores
    steps: Any  # what the record calls these: a number, a list, or words
    labels: dict[str, np.ndarray]  # [episodes, N*Q] predicted, by the column of predictions.csv; empty if not asked for
    diverged: dict[str, int]  # numbers of steps that are left out, and of their test episodes that are not finite


def _run(
    run: Experiment, trained: Trained, test: PlannedTest, settings: Sequence[str], predictions: bool
) -> dict[str, Result]:
    """The results of a test by setting."""
    tasks, learner, listed = test.tasks, run.learner, isinstance(test.protocol.steps, list)
    episodes = test.protocol.episodes
    tested = {setting: Result({}, [], {}, {}) for setting in settings}
    label = f"{title(run.cfg)}: test ({test.protocol.name}, {' and '.join(settings)})"
    total = len(rank_slice(episodes)) * len(test.steps)
    with progress_bar(label, total) if is_main() else nullcontext() as advance:
        for count in test.steps:
            end = f"_{count}" if listed else ""
            name = f"{tasks.metric}{end}"
            with override_test_steps(learner, count):
                words = getattr(learner, "adaptation_steps", count)
                by_setting = evaluate_settings(
                    learner, trained.params, trained.state, tasks, episodes,
                    settings=settings, engine=run.engine, labels=predictions, advance=advance,
                )  # fmt: skip
            for setting, values in by_setting.items():
                result, scores = tested[setting], values
                if predictions:
                    assert isinstance(tasks, Sampler)
                    scores = score_labels(tasks, values)
                if diverged := int((~np.isfinite(scores)).sum()):
                    problem = f"{name} is not finite in {diverged} of {episodes} test episodes"
                    if count == test.steps[0]:
                        # Each process has all scores.
                        raise FewshotError(f"{problem}; {explain_nan(learner)}", everywhere=True)
                    if is_main():
                        print(f"warning: {problem}; left out of the record", file=sys.stderr)
                    result.diverged[str(count)] = diverged
                    continue
                result.scores[name] = scores
                if predictions:
                    result.labels[f"predicted{end}"] = values
                result.steps = [*result.steps, count] if listed else words
    return tested
