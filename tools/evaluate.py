"""Test a run again, with any protocol: `python tools/evaluate.py run=<run folder> query=1 transductive=false`.

`dataset=cub` tests it on classes of another dataset, whose images are adapted to the shape that the learner knows.

The test leaves a record of its own below `<run>/tests`, which tables show beside the run's. `latents=300` adds LEO's
latent codes of so many tasks, and a picture of them.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.leo import Leo
from fewshot.core.distributed import is_main, main_first, process_group
from fewshot.core.errors import FewshotError
from fewshot.experiment.build import build, tasks_of
from fewshot.experiment.cli import main
from fewshot.experiment.config import config_hash, given_overrides, resolved, trained_with
from fewshot.experiment.figures import check_plot, draw_test
from fewshot.experiment.latents import write_latents
from fewshot.experiment.make_record import make_record, protocol_slug, task_fields
from fewshot.experiment.run_dir import saved_config
from fewshot.experiment.transfer import check_disjoint_classes, on_another_dataset, train_fingerprint
from fewshot.report.records import read_record, summary, write_record
from fewshot.tasks.sampler import Sampler
from fewshot.training.loop import load_selected
from fewshot.training.settings import TrainSettings

PROTOCOL = {
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


def evaluate(cfg: DictConfig) -> None:
    with (
        process_group()
    ):  # inside: launchers send this function to other processes, and a decorated one cannot be pickled
        _evaluate(cfg)


def _evaluate(cfg: DictConfig) -> None:
    run = Path(cfg.run)
    if cfg.root is not None and cfg.dataset is not None:
        raise FewshotError(f"root={cfg.root}: is of the run's own images; of another dataset set dataset.reader.root")
    moved = cfg.dataset is None and any(word.startswith("data_dir=") for word in given_overrides())
    trained_cfg = saved_config(run, device=cfg.device, root=cfg.root, data_dir=cfg.data_dir if moved else None)
    elsewhere = None if cfg.dataset is None else DictConfig(OmegaConf.to_container(cfg.dataset, resolve=True))
    test_cfg = trained_cfg.copy() if elsewhere is None else on_another_dataset(trained_cfg, run, elsewhere)
    if cfg.rotations is not None and "rotations" not in test_cfg.dataset:
        raise FewshotError(f"rotations={cfg.rotations}: functions have none; leave it out")
    for key, place in PROTOCOL.items():
        if cfg[key] is not None:
            OmegaConf.update(test_cfg, place, cfg[key])
    if cfg.plot:
        check_plot(test_cfg)
    if cfg.latents is not None and cfg.latents < 1:
        raise FewshotError(f"latents={cfg.latents}: must be at least 1")
    experiment = main_first(lambda: build(test_cfg, run if elsewhere is None else None, made_for=trained_cfg.way))
    if cfg.latents is not None and not isinstance(experiment.learner, Leo):
        raise FewshotError("latents: are of classes; leave it out, or name a run of algorithm=leo")
    words = [protocol_slug(test_cfg, experiment)]
    if cfg.checkpoint is not None:
        words.append(Path(cfg.checkpoint).stem)
    if elsewhere is not None:
        data, bank = test_cfg.dataset, tasks_of(experiment, test_cfg, test_cfg.test.split, test_cfg.test.seed).source
        check_disjoint_classes(run, data.name, bank)
        words.insert(0, f"{data.name}-{config_hash({'dataset': resolved(data), 'images': bank.fingerprint})[:8]}")
    settings = TrainSettings(**experiment.config["train"])
    trained = load_selected(experiment.learner, settings, run, experiment.device, cfg.checkpoint)
    folder = Path(cfg.out) if cfg.out else run / "tests" / "-".join(words)
    if (folder / "config.yaml").exists():
        raise FewshotError(f"out={folder}: holds a run; choose another folder")
    if (folder / "record.json").exists() and not cfg.force and cfg.latents is None and not cfg.plot:
        if is_main():
            print(summary(read_record(folder / "record.json"), folder))
        return
    record, scores = make_record(experiment, test_cfg, trained)
    if not is_main():
        return
    # What the run was trained for, and with.
    record |= task_fields(trained_cfg)
    record["config"] = trained_with(resolved(trained_cfg))
    if elsewhere is not None:
        record["data"]["train_fingerprint"] = train_fingerprint(run, trained_cfg.train.train_on_val)
    own = run / "record.json"
    if own.exists() and read_record(own)["protocol"] == record["protocol"]:
        folder = run
        print(f"{summary(record, run)} (the run's own protocol: no record written)")
    else:
        write_record(folder, record, scores)
        print(summary(record, folder))
    if cfg.plot:
        print(f"drawn: {draw_test(folder, experiment, test_cfg, trained)}")
    if isinstance(experiment.learner, Leo) and cfg.latents is not None:
        tasks = tasks_of(experiment, test_cfg, test_cfg.test.split, test_cfg.test.seed)
        assert isinstance(tasks, Sampler)  # LEO learns on examples
        write_latents(folder, experiment.learner, trained.params, tasks, cfg.latents, experiment.engine)
        print(f"latent codes of {cfg.latents} tasks: {folder / 'latents.npz'} and {folder / 'latents.png'}")


if __name__ == "__main__":
    main(evaluate, "evaluate")
