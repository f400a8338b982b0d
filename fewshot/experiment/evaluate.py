"""What tools/evaluate.py does: test a trained run again, with another protocol or on another dataset."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.leo import Leo
from fewshot.core.distributed import is_main, main_first, process_group
from fewshot.core.errors import FewshotError
from fewshot.experiment.build import Experiment, build
from fewshot.experiment.config import config_hash, given_overrides, resolved, trained_with
from fewshot.experiment.figures import check_plot, draw_test
from fewshot.experiment.latents import write_latents
from fewshot.experiment.make_record import make_record, protocol_slug, task_fields
from fewshot.experiment.run import load_trained
from fewshot.experiment.run_dir import saved_config
from fewshot.experiment.transfer import check_disjoint_classes, train_fingerprint, with_dataset
from fewshot.report.records import read_record, summary, write_record
from fewshot.tasks.sampler import Sampler

# The keys of conf/evaluate.yaml that replace a setting of the run, and that setting.
REPLACED = {
    "split": "test.split",
    "way": "way",
    "shot": "shot",
    "query": "query",
    "episodes": "test.episodes",
    "episode_seed": "test.seed",
    "transductive": "test.transductive",
    "rotations": "dataset.rotations.test",
    "steps": "test.steps",
    "engine": "engine",
}


@process_group()
def evaluate(cfg: DictConfig) -> None:
    """Test a run, and write the record below `<run>/tests` or where `out` says.

    Raises:
        FewshotError: there is no such run, or it cannot be tested so.
    """
    run_dir = Path(cfg.run)
    trained_cfg, test_cfg = _configurations(cfg, run_dir)
    run = main_first(build)(test_cfg, None if cfg.dataset is not None else run_dir, trained_cfg.way)
    if cfg.latents is not None and not isinstance(run.learner, Leo):
        raise FewshotError("latents: are of classes; leave it out, or name a run of algorithm=leo")
    folder = _test_dir(cfg, run, run_dir)
    trained = load_trained(run, run_dir, cfg.checkpoint)
    if (folder / "record.json").exists() and not cfg.force and cfg.latents is None and not cfg.plot:
        if is_main():
            print(summary(read_record(folder / "record.json"), folder))
        return
    record, scores = make_record(run, trained)
    if not is_main():
        return
    record |= task_fields(trained_cfg) | {"config": trained_with(resolved(trained_cfg))}
    if cfg.dataset is not None:
        record["data"]["train_fingerprint"] = train_fingerprint(run_dir, trained_cfg.train.train_on_val)
    run_record = run_dir / "record.json"
    if run_record.exists() and read_record(run_record)["protocol"] == record["protocol"]:
        folder = run_dir
        print(f"{summary(record, run_dir)} (the run's own protocol: no record written)")
    else:
        write_record(folder, record, scores)
        print(summary(record, folder))
    if cfg.plot:
        print(f"drawn: {draw_test(folder, run, trained)}")
    if cfg.latents is not None:
        assert isinstance(run.learner, Leo) and isinstance(run.test, Sampler)  # LEO learns on examples
        write_latents(folder, run.learner, trained.params, run.test, cfg.latents, run.engine)
        print(f"latent codes of {cfg.latents} tasks: {folder / 'latents.npz'} and {folder / 'latents.png'}")


def _configurations(cfg: DictConfig, run_dir: Path) -> tuple[DictConfig, DictConfig]:
    """The configuration that the run was trained with, and the same with the test that is asked for."""
    if cfg.root is not None and cfg.dataset is not None:
        raise FewshotError(f"root={cfg.root}: is of the run's own images; of another dataset set dataset.reader.root")
    moved = cfg.dataset is None and any(override.startswith("data_dir=") for override in given_overrides())
    trained = saved_config(run_dir, device=cfg.device, root=cfg.root, data_dir=cfg.data_dir if moved else None)
    if cfg.dataset is None:
        test = trained.copy()
    else:
        test = with_dataset(trained, run_dir, DictConfig(OmegaConf.to_container(cfg.dataset, resolve=True)))
    if cfg.rotations is not None and "rotations" not in test.dataset:
        raise FewshotError(f"rotations={cfg.rotations}: functions have none; leave it out")
    for key, replaced in REPLACED.items():
        if cfg[key] is not None:
            OmegaConf.update(test, replaced, cfg[key])
    if cfg.plot:
        check_plot(test)
    if cfg.latents is not None and cfg.latents < 1:
        raise FewshotError(f"latents={cfg.latents}: must be at least 1")
    return trained, test


def _test_dir(cfg: DictConfig, run: Experiment, run_dir: Path) -> Path:
    """The folder of this test, named by the other dataset, the protocol and the checkpoint."""
    parts = [protocol_slug(run)]
    if cfg.checkpoint is not None:
        parts.append(Path(cfg.checkpoint).stem)
    if cfg.dataset is not None:
        dataset, bank = run.cfg.dataset, run.test.source
        check_disjoint_classes(run_dir, dataset.name, bank)
        key = config_hash({"dataset": resolved(dataset), "images": bank.fingerprint})[:8]
        parts.insert(0, f"{dataset.name}-{key}")
    folder = Path(cfg.out) if cfg.out else run_dir / "tests" / "-".join(parts)
    if (folder / "config.yaml").exists():
        raise FewshotError(f"out={folder}: holds a run; choose another folder")
    return folder
