"""Pictures of what a trained learner does on its first test tasks: `plot=true` of training and of tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch.func import vmap

from fewshot.algorithms.learner import override_test_steps
from fewshot.algorithms.leo_regression import LeoRegression
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.random import split
from fewshot.engine.evaluate import query_outputs
from fewshot.experiment.build import Experiment, tasks_of
from fewshot.experiment.make_record import steps_of
from fewshot.report.pictures import Fit, episode, fits
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.loop import Trained

TASKS, GRID, SAMPLES = 6, 200, 20  # of a picture of fits: panels, points of a curve, fits drawn at random
IMAGES = 8  # of each class in the picture of an episode, of its shots and of its queries


def check_plot(cfg: DictConfig) -> None:
    """Raises FewshotError where there is nothing to draw."""
    if cfg.features.name is not None:
        raise FewshotError(f"plot=true: features={cfg.features.name} are no images to draw; leave plot out")


def draw_test(folder: Path, run: Experiment, cfg: DictConfig, trained: Trained) -> Path:
    """Write `fits.png` (regression) or `episode.png` of the first test tasks into the folder; the file's path."""
    check_plot(cfg)
    tasks = tasks_of(run, cfg, cfg.test.split, cfg.test.seed)
    if isinstance(tasks, Regression):
        path, picture = folder / "fits.png", fits(_fits(run, cfg, trained, tasks))
    else:
        assert isinstance(tasks, Sampler)
        path, picture = folder / "episode.png", _episode(run, cfg, trained, tasks)
    write_atomically(path, picture)
    return path


def _fits(run: Experiment, cfg: DictConfig, trained: Trained, tasks: Regression) -> list[Fit]:
    """The first tasks, each with its function, what was learned of it, and for LEO fits from sampled codes."""
    learner, (low, high) = run.learner, tasks.source.x
    curves, episodes = tasks.draw(0, TASKS), tasks.episodes(0, TASKS)
    x = torch.linspace(low, high, GRID, device=run.device)
    truth = curves.at(x.expand(TASKS, GRID)).cpu().numpy()
    several = steps_of(cfg, learner)
    found = []
    for place in range(TASKS):
        task = episodes[place]

        def fitted(steps: int, task=task) -> np.ndarray:
            with override_test_steps(learner, steps):
                adapted = learner.adapt(trained.params, trained.state, task)
            return learner.predict(adapted, x[:, None])[:, 0].cpu().numpy()

        def sampled(key: torch.Tensor, task=task) -> torch.Tensor:
            assert isinstance(learner, LeoRegression)
            return learner.predict(learner.sampled(trained.params, task, key), x[:, None])[:, 0]

        if isinstance(learner, LeoRegression):
            keys = split(task.key, SAMPLES)
            lines, samples = {"not sampled": fitted(several[-1])}, vmap(sampled)(keys).cpu().numpy()
        else:
            lines = {f"after {count}" if count else "before": fitted(count) for count in dict.fromkeys([0, *several])}
            samples = None
        points = task.support_x[:, 0].cpu().numpy(), task.support_y.cpu().numpy()
        found.append(Fit(x.cpu().numpy(), truth[place], *points, curves=lines, samples=samples))
    return found


def _episode(run: Experiment, cfg: DictConfig, trained: Trained, tasks: Sampler) -> bytes:
    """The first episode: its images, and what its queries were taken for."""
    task = tasks.episodes(0, 1)[0]
    with override_test_steps(run.learner, steps_of(cfg, run.learner)[-1]):
        outputs = query_outputs(run.learner, trained.params, trained.state, task, cfg.test.transductive)

    def by_way(items: torch.Tensor) -> np.ndarray:
        return items.unflatten(0, (tasks.way, -1))[:, :IMAGES].cpu().numpy()

    names = [tasks.bank.names[place] for place in tasks.draw(0, 1).classes[0].tolist()]
    predicted = by_way(outputs.argmax(-1))
    return episode(by_way(task.support_x), by_way(task.query_x), by_way(task.query_y), predicted, names)
