"""What tools/evaluate.py does: test a trained run again, with another protocol or on another dataset."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.leo import LEO
from fewshot.core.distributed import check_shared_device, is_main, main_first, process_group, world
from fewshot.core.errors import FewshotError
from fewshot.core.progress import print_note
from fewshot.experiment.build import Experiment, build
from fewshot.experiment.config import config_hash, given_overrides, is_regression, resolved
from fewshot.experiment.figures import check_drawable, check_plot, draw_test
from fewshot.experiment.latents import write_latents
from fewshot.experiment.protocol import keep_changed_values
from fewshot.experiment.rows import apply_protocols
from fewshot.experiment.run import load_trained
from fewshot.experiment.run_dir import TESTS, find_run, saved_config
from fewshot.experiment.run_tests import write_tests
from fewshot.experiment.transfer import (
    LIGHT_ON_DARK,
    check_disjoint_classes,
    is_mostly_light,
    train_fingerprint,
    with_dataset,
)
from fewshot.report.records import PREDICTIONS, read_record, summary
from fewshot.tasks.sampler import Sampler
from fewshot.training.loop import is_trainable
from fewshot.training.trained import Trained

REPLACED = ("way", "shot", "engine")  # keys of conf/evaluate.yaml that replace a setting of the run


@process_group()
def evaluate(cfg: DictConfig) -> None:
    """Test a run by each protocol, and write the records below `<run>/tests` or `out`.

    Raises:
        FewshotError: there is no such run, or it cannot be tested so.
    """
    run_dir, trained_cfg, test_cfg = _configurations(cfg)
    check_shared_device(test_cfg.device, world()[1])
    run = _build(cfg, run_dir, trained_cfg, test_cfg)
    tests = Path(cfg.out) if cfg.out else run_dir / TESTS
    trained = load_trained(run, run_dir, cfg.checkpoint)
    if cfg.dataset is not None:
        _check_classes(run, run_dir, trained_cfg, trained)
    parts = _name_parts(cfg, run, trained_cfg, trained)
    data = None if cfg.dataset is None else train_fingerprint(run_dir, trained_cfg.train.train_on_val)
    before = {path: path.stat().st_mtime_ns for path in tests.glob("*/record.json")}
    folders = write_tests(
        run,
        trained,
        tests,
        parts,
        again=cfg.force,
        predictions=cfg.predictions,
        trained_cfg=trained_cfg,
        train_fingerprint=data,
    )
    if not is_main():
        return
    for folder in folders:
        record = folder / "record.json"
        print(summary(read_record(record), folder))
        if before.get(record) == record.stat().st_mtime_ns:
            print("  tested before; force=true tests again")
        if cfg.predictions:
            print(f"predictions: {folder / PREDICTIONS}")
    if cfg.plot:
        print(f"drawn: {draw_test(folders[0], run, trained)}")
    if cfg.latents is not None:
        assert isinstance(run.learner, LEO) and isinstance(run.first_tasks, Sampler)  # LEO learns on examples
        write_latents(folders[0], run.learner, trained.params, run.first_tasks, cfg.latents, run.engine)
        files = " and ".join(str(folders[0] / name) for name in ("latents.npz", "latents.png"))
        print(f"latent codes of {cfg.latents} tasks: {files}")


@main_first
def _configurations(cfg: DictConfig) -> tuple[Path, DictConfig, DictConfig]:
    """The run's folder, the configuration that it was trained with, and the same with the test that is asked for."""
    run_dir = find_run(Path(cfg.run))
    if cfg.root is not None and cfg.dataset is not None:
        raise FewshotError(f"root={cfg.root}: is of the run's own images; of another dataset set dataset.reader.root")
    overrides = given_overrides()
    moved = cfg.dataset is None and any(override.lstrip("+").startswith("data_dir=") for override in overrides)
    trained = saved_config(run_dir, device=cfg.device, root=cfg.root, data_dir=cfg.data_dir if moved else None)
    if cfg.dataset is None:
        test = trained.copy()
    else:
        test = with_dataset(trained, run_dir, DictConfig(OmegaConf.to_container(cfg.dataset, resolve=True)))
    for key in REPLACED:
        if cfg[key] is not None:
            test[key] = cfg[key]
    OmegaConf.update(test, "protocol", OmegaConf.to_container(cfg.protocol), merge=False)
    if left_out := apply_protocols(test, overrides):
        print_note(left_out)
    keep_changed_values(test, trained, overrides)
    if cfg.plot:
        check_plot(test)
    if cfg.predictions and is_regression(test.dataset):
        raise FewshotError(f"predictions=true: {test.dataset.name} is a regression, without classes; leave it out")
    if cfg.out and (Path(cfg.out) / "config.yaml").exists():
        raise FewshotError(f"out={cfg.out}: holds a run; choose another folder")
    if cfg.latents is not None and cfg.latents < 1:
        raise FewshotError(f"latents={cfg.latents}: must be at least 1")
    return run_dir, trained, test


@main_first
def _build(cfg: DictConfig, run_dir: Path, trained_cfg: DictConfig, test_cfg: DictConfig) -> Experiment:
    """The run with the test that is asked for, of which the learner and the dataset allow all."""
    run = build(test_cfg, run_dir, trained_cfg.way, other_data=cfg.dataset is not None)
    if cfg.plot:
        check_drawable(run)
    if cfg.latents is not None and not isinstance(run.learner, LEO):
        raise FewshotError(f"latents={cfg.latents}: only LEO, on classes, has latent codes; leave it out")
    return run


@main_first
def _check_classes(run: Experiment, run_dir: Path, trained_cfg: DictConfig, trained: Trained) -> None:
    """Check the other dataset; print a note where its images are light and the run knows dark ones.

    Raises:
        FewshotError: it has classes that the run was trained or selected on.
    """
    learned = trained_cfg.dataset
    for protocol in run.protocols:
        source = run.protocol_tasks(protocol).source
        check_disjoint_classes(run_dir, learned.name, run.cfg.dataset.name, source, trained.selection)
        if learned.reader._target_ in LIGHT_ON_DARK and is_mostly_light(source):
            print_note("the run knows light strokes on dark, and these images are light: it will do badly on them")


def _name_parts(cfg: DictConfig, run: Experiment, trained_cfg: DictConfig, trained: Trained) -> list[str]:
    """What tells the test's folder apart from that of the run's own task, data and parameters."""
    parts = []
    if (run.cfg.way, run.cfg.shot) != (trained_cfg.way, trained_cfg.shot):
        parts.append(f"{run.cfg.way}w{run.cfg.shot}s")
    if cfg.dataset is not None:
        dataset = run.cfg.dataset
        images = {split: source.fingerprint for split, source in run.sources.items()}
        key = config_hash({"dataset": resolved(dataset), "images": images})[:8]
        parts.append(f"{dataset.name}-{key}")
    if cfg.checkpoint is not None:
        parts.append(Path(cfg.checkpoint).stem)
    if trained.steps < run.settings.steps and is_trainable(run.learner):
        parts.append(f"step{trained.steps}")  # of a run that is not finished
    return parts
