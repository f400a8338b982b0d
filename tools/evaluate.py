"""Test a run again, by any protocol: `python tools/evaluate.py run=<run folder> protocol=paper`.

`protocol.common.query=1` changes a value of a protocol. `dataset=cub` tests the run on the classes of another dataset,
whose images are changed to the shape that the learner knows. Each test leaves a record below `<run>/tests`.
`latents=300` writes LEO's latent codes of 300 tasks, and a picture of them.
"""

from omegaconf import DictConfig

from fewshot.experiment.cli import main


def run(cfg: DictConfig) -> None:
    from fewshot.experiment.evaluate import evaluate  # here, since it imports torch: mistakes are answered before

    evaluate(cfg)


if __name__ == "__main__":
    main(run, "evaluate")
