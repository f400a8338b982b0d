"""Train a learner, test it, leave a record: `python tools/train.py algorithm=maml dataset=omniglot way=5 shot=1`.

`-m` with comma-separated values sweeps and ends with a table. `resume=<run folder>` continues a run.
`torchrun --nproc_per_node=2 tools/train.py ...` shares the tasks of one run among processes or GPUs.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewshot.cli import main
from fewshot.config import apply_recipe
from fewshot.distributed import is_main, joined
from fewshot.drawing import check_plot, draw_test
from fewshot.errors import FewshotError
from fewshot.experiment import build
from fewshot.report.record import copy_record, read_record, summary
from fewshot.run import tested_inductively, training_run
from fewshot.run_folder import saved_config
from fewshot.training import TrainSettings, selected


def train(cfg: DictConfig) -> Path | None:
    with joined():  # inside: launchers send this function to other processes, and a decorated one cannot be pickled
        return _train(cfg)


def _train(cfg: DictConfig) -> Path | None:
    overrides = HydraConfig.get().overrides.task
    if cfg.resume:
        others = [o for o in overrides if o.split("=")[0] not in ("resume", "device", "plot")]
        if others:
            raise FewshotError(f"resume={cfg.resume}: the run keeps its own settings; leave out {' '.join(others)}")
        plot = cfg.plot
        cfg = saved_config(Path(cfg.resume), device=None if cfg.device == "auto" else cfg.device)
        cfg.plot = plot
    else:
        apply_recipe(cfg, overrides)
    if cfg.plot:
        check_plot(cfg)
    folder, record = training_run(cfg)
    again = tested_inductively(cfg, folder) if cfg.inductive_too else None
    if not is_main():
        return None
    print(summary(record, folder))
    if again is not None:
        print(summary(read_record(again / "record.json"), again))
    above = Path(cfg.runs) if folder.is_relative_to(cfg.runs) else folder.parent
    for tested in (folder, again):
        if cfg.records and tested is not None:
            copy_record(tested, Path(cfg.records), above)
    if cfg.plot:
        experiment = build(cfg, folder)
        trained = selected(experiment.learner, TrainSettings(**experiment.config["train"]), folder, experiment.device)
        print(f"drawn: {draw_test(folder, experiment, cfg, trained)}")
    return folder / "record.json"


if __name__ == "__main__":
    main(train, "train")
