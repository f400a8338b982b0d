"""Pictures of a trained learner on its first test episodes: `plot=true` of tools/train.py and tools/evaluate.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from fewshot.algorithms.learner import override_test_steps
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.engine.evaluate import query_outputs
from fewshot.experiment.build import Experiment
from fewshot.experiment.config import is_on_features, is_regression
from fewshot.experiment.fits import check_one_input, fits_of
from fewshot.experiment.run_tests import PlannedTest, plan_tests
from fewshot.report.pictures import episode, fits
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.trained import Trained

IMAGES = 8  # at most, of each class, in the support set and in the query set of a drawn episode


def check_plot(cfg: DictConfig) -> None:
    """Raises FewshotError where there is nothing to draw."""
    if is_on_features(cfg):
        raise FewshotError(f"plot=true: {cfg.features.name} features are no images to draw; leave plot out")
    if is_regression(cfg.dataset):
        check_one_input(cfg)


def check_drawable(run: Experiment) -> None:
    """Raises FewshotError where the examples cannot be drawn, such as those of a person's own reader."""
    if not is_regression(run.cfg.dataset) and (len(run.shape) != 3 or run.shape[0] not in (1, 3)):
        shape = "x".join(map(str, run.shape))
        raise FewshotError(f"plot=true: examples are {shape}, and not images of 1 or 3 channels; leave plot out")


def draw_test(folder: Path, run: Experiment, trained: Trained) -> Path:
    """Write `fits.png` (regression) or `episode.png` of the first test's tasks into the folder; the file's path."""
    check_plot(run.cfg)
    check_drawable(run)
    test = plan_tests(run, trained)[0]
    if isinstance(test.tasks, Regression):
        path, picture = folder / "fits.png", fits(fits_of(run, trained, test.tasks, test.steps))
    else:
        path, picture = folder / "episode.png", _episode(run, trained, test)
    write_atomically(path, picture)
    return path


def _episode(run: Experiment, trained: Trained, test: PlannedTest) -> bytes:
    """The first episode: its images, and the class predicted for each query."""
    tasks, setting = test.tasks, test.settings[0]
    assert isinstance(tasks, Sampler)
    task = tasks.episodes(0, 1)[0]
    with override_test_steps(run.learner, test.steps[-1]):
        outputs = query_outputs(run.learner, trained.params, trained.state, task, setting)

    def by_way(items: torch.Tensor) -> np.ndarray:
        return items.unflatten(0, (tasks.way, -1))[:, :IMAGES].cpu().numpy()

    names = [tasks.bank.names[index] for index in tasks.draw(0, 1).classes[0].tolist()]
    predicted = by_way(outputs.argmax(-1))
    return episode(by_way(task.support_x), by_way(task.query_x), by_way(task.query_y), predicted, names)
