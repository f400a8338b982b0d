"""Train a learner, test it, leave a record: `python tools/train.py algorithm=maml dataset=omniglot way=5 shot=1`.

`-m` with comma-separated values sweeps and ends with a table. `resume=<run folder>` continues a run.
`torchrun --nproc_per_node=2 tools/train.py ...` shares the tasks of each run among processes or GPUs.
"""

from pathlib import Path

from omegaconf import DictConfig

from fewshot.experiment.cli import main


def run(cfg: DictConfig) -> list[Path]:
    from fewshot.experiment.train import train  # here, since it imports torch: mistakes are answered before

    return train(cfg)


if __name__ == "__main__":
    main(run, "train")
