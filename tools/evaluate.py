"""Test a run again, with any protocol: `python tools/evaluate.py run=<run folder> query=1 transductive=false`.

The test leaves a record of its own below `<run>/tests`, which tables show beside the run's. `latents=300` adds LEO's
latent codes of so many tasks, and a picture of them.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.leo import Leo
from fewshot.cli import main
from fewshot.config import resolved, trained_with
from fewshot.errors import FewshotError
from fewshot.experiment import build, regime, saved_config, tested, tester
from fewshot.report.latents import write_latents
from fewshot.report.record import read_record, summary, write_record
from fewshot.training import TrainSettings, selected

PROTOCOL = {
    "split": "test.split",
    "shot": "shot",
    "query": "query",
    "episodes": "test.episodes",
    "seed": "test.seed",
    "transductive": "test.transductive",
    "rotations": "dataset.rotations.test",
    "engine": "engine",
}


def evaluate(cfg: DictConfig) -> None:
    run = Path(cfg.run)
    trained_cfg = saved_config(run, device=cfg.device)
    test_cfg = trained_cfg.copy()
    for key, place in PROTOCOL.items():
        if cfg[key] is not None:
            OmegaConf.update(test_cfg, place, cfg[key])
    if cfg.latents is not None and cfg.latents < 1:
        raise FewshotError(f"latents={cfg.latents}: must be at least 1")
    experiment = build(test_cfg, run)
    if cfg.latents is not None and not isinstance(experiment.learner, Leo):
        raise FewshotError("latents: only LEO has latent codes; leave it out, or name a run of algorithm=leo")
    if cfg.steps is not None:
        experiment.learner.test_steps = cfg.steps
    name = (
        f"{test_cfg.test.split}-{test_cfg.shot}s{test_cfg.query}q-{test_cfg.dataset.rotations.test}"
        f"-{regime(experiment.learner, test_cfg)}"
        f"-{experiment.learner.test_steps}steps-{test_cfg.test.episodes}e{test_cfg.test.seed}"
    )
    folder = Path(cfg.out) if cfg.out else run / "tests" / name
    if (folder / "config.yaml").exists():
        raise FewshotError(f"out={folder}: holds a run; choose another folder")
    if (folder / "record.json").exists() and not cfg.force and cfg.latents is None:
        print(summary(read_record(folder / "record.json"), folder))
        return
    trained = selected(experiment.learner, TrainSettings(**experiment.config["train"]), run, experiment.device)
    record, scores = tested(experiment, test_cfg, trained)
    # What the run was trained for, and with.
    record |= {key: trained_cfg[key] for key in ("way", "shot", "query")}
    record["config"] = trained_with(resolved(trained_cfg))
    own = run / "record.json"
    if own.exists() and read_record(own)["protocol"] == record["protocol"]:
        print(f"{summary(record, run)} (the run's own protocol: nothing written)")
    else:
        write_record(folder, record, scores)
        print(summary(record, folder))
    if cfg.latents is not None:
        tasks = tester(experiment, test_cfg)
        write_latents(folder, experiment.learner, trained.params, tasks, cfg.latents, experiment.engine)
        print(f"latent codes of {cfg.latents} tasks: {folder / 'latents.npz'} and {folder / 'latents.png'}")


if __name__ == "__main__":
    main(evaluate, "evaluate")
