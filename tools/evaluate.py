"""Test a run again, with any protocol: `python tools/evaluate.py run=<run folder> query=1 transductive=false`.

The test leaves a record of its own below `<run>/tests`, which tables show beside the run's.
"""

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fewshot.cli import main
from fewshot.config import identity, resolved
from fewshot.experiment import build, saved_config, summary, tested
from fewshot.report.record import write_record
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
    experiment = build(test_cfg)
    if cfg.steps is not None:
        experiment.learner.test_steps = cfg.steps
    regime = "transductive" if test_cfg.test.transductive else "inductive"
    name = (
        f"{test_cfg.test.split}-{test_cfg.shot}s{test_cfg.query}q-{test_cfg.dataset.rotations.test}-{regime}"
        f"-{experiment.learner.test_steps}steps-{test_cfg.test.episodes}e{test_cfg.test.seed}"
    )
    folder = Path(cfg.out) if cfg.out else run / "tests" / name
    if (folder / "record.json").exists() and not cfg.force:
        print(summary(json.loads((folder / "record.json").read_text(encoding="utf-8")), folder))
        return
    trained = selected(experiment.learner, TrainSettings(**experiment.config["train"]), run, experiment.device)
    record, scores = tested(experiment, test_cfg, trained)
    # What the run was trained for, and with.
    record |= {key: trained_cfg[key] for key in ("way", "shot", "query")}
    record["config"] = identity(resolved(trained_cfg), without=("seed",))
    write_record(folder, record, scores)
    print(summary(record, folder))


if __name__ == "__main__":
    main(evaluate, "evaluate")
