"""A whole run: trained and tested as a configuration says, in a folder from which it can be continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.learner import Tensors
from fewshot.checkpoint import load_checkpoint, only_process_in, write_atomically
from fewshot.config import resolved
from fewshot.device import reset_peak_memory
from fewshot.evaluation import evaluate
from fewshot.experiment import build, check_dataset, read_sources, tasks_of, training_tasks
from fewshot.progress import TrainingDisplay
from fewshot.report.record import read_record, task_name, write_record
from fewshot.run_folder import DATA, is_finished, run_folder
from fewshot.testing import steps_of, tested
from fewshot.training import TrainSettings, checkpoints, is_trained, selected, train


def training_run(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Train and test what the configuration says, or continue where it stopped; (run folder, record).

    Raises:
        FewshotError: a mistake in configuration, data or folder, or a loss that is not finite.
    """
    check_dataset(cfg)
    folder = run_folder(resolved(cfg))
    if is_finished(folder, cfg) and not cfg.force:
        read_sources(cfg, folder)
        return folder, read_record(folder / "record.json")
    with only_process_in(folder):
        return folder, _train_and_test(folder, cfg)


def _train_and_test(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    run = build(cfg, None if cfg.force else folder)
    reset_peak_memory(run.device)
    settings = TrainSettings(**run.config["train"])
    training = training_tasks(run, cfg)
    validation = tasks_of(run, cfg, "val", cfg.seed)
    # What cannot be trained or tested should leave no folder, nor cost the training first.
    is_trained(run.learner, training)
    tasks_of(run, cfg, cfg.test.split, cfg.test.seed)
    steps_of(cfg)
    if cfg.force:
        for path in (folder / "record.json", *checkpoints(folder)):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "tests", ignore_errors=True)  # they are of the weights that go
    saved = run.config | {"device": str(run.device)}
    data: dict[str, Any] = {name: source.fingerprint for name, source in run.sources.items()}
    data |= {"shape": run.shape, "classes": training.source.names}
    write_atomically(folder / DATA, (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)).encode())

    def validate(params: Tensors, carry: Tensors) -> float:
        scores = evaluate(
            run.learner, params, carry, validation, cfg.test.validation_episodes,
            transductive=cfg.test.transductive, engine=run.engine,
        )  # fmt: skip
        return float(scores.mean())

    last, _ = checkpoints(folder)
    start = load_checkpoint(last, "cpu")[1]["step"] if last.exists() else 0
    title = f"{cfg.algorithm.name} {task_name({'dataset': cfg.dataset.name, 'way': cfg.way, 'shot': cfg.shot})}"
    with TrainingDisplay(folder, title, settings.steps, start, settings.meta_batch, settings.log_every) as display:
        train(run.learner, training, settings, run.engine, folder, validate, display.update)
    record, scores = tested(run, cfg, selected(run.learner, settings, folder, run.device))
    write_record(folder, record, scores)
    return record
