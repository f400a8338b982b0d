"""Label images from a few examples: `python tools/predict.py run=<run folder> support=<folder> query=<folder>`.

`support` holds a folder of images for each class, as many in each as there are. The run's learner adapts to them and
labels the images of `query`: predictions.csv has a row per image with the probability of each class, and
`page=predictions.html` shows them. Where `query` has class folders too, accuracy and a confusion matrix are printed.
Without a run: `method=nearest_mean features=torchvision features.model=resnet18 features.weights=<file>`.
"""

from omegaconf import DictConfig

from fewshot.experiment.cli import main


def run(cfg: DictConfig) -> None:
    from fewshot.experiment.predict import predict  # here, since it imports torch: mistakes are answered before

    predict(cfg)


if __name__ == "__main__":
    main(run, "predict")
