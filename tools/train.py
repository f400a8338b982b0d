"""Train a learner, test it, leave a record: `python tools/train.py algorithm=maml dataset=omniglot way=5 shot=1`.

`-m` with comma-separated values sweeps and ends with a table. `resume=<run folder>` continues a run.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewshot.cli import main
from fewshot.config import apply_recipe
from fewshot.experiment import saved_config, training_run


def train(cfg: DictConfig) -> None:
    if cfg.resume:
        cfg = saved_config(Path(cfg.resume), device=cfg.device)
    else:
        apply_recipe(cfg, HydraConfig.get().overrides.task)
    folder, record = training_run(cfg)
    test, protocol = record["test"], record["protocol"]
    print(
        f"{record['algorithm']} {record['dataset']} {record['way']}-way {record['shot']}-shot: "
        f"{100 * test['accuracy']:.2f} ± {100 * test['ci95']:.2f} % "
        f"({test['episodes']} episodes, {protocol['regime']}, recipe {record['recipe'] or 'none'}, "
        f"{record['cost']['train_seconds'] / 60:.1f} min)  {folder}"
    )


if __name__ == "__main__":
    main(train, "train")
