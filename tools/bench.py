"""Speed of the engines, side by side: `python tools/bench.py network=omniglot`.

Tasks per second of a full meta-training step (adaptation, outer gradient, Adam) on random examples, and the memory that
one takes. The engines of a network take turns, several rounds, and the median counts. `times` compares with the
network's first engine: learn2learn, which gains here from the large pages that this project asks for, easyfsl, or one
task at a time. `(auto)` marks what engine=auto takes, and `(auto, long)` what it takes in long trainings.
"""

from omegaconf import DictConfig

from fewshot.experiment.cli import main


def run(cfg: DictConfig) -> None:
    from fewshot.experiment.bench import bench  # here, since it imports torch: mistakes are answered before

    bench(cfg)


if __name__ == "__main__":
    main(run, "bench")
