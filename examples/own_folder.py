"""Your own folder of images, one folder for each class: meta-train, test, and label a new image.

    python examples/own_folder.py pictures

Half of the classes, at random, are for training, a quarter each for validation and test: 12 classes are enough for
tasks of 3. Give other `fractions` if you have more classes; fewshot/data/README.md lists other layouts.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import fewshot as fs

SIZE = 28


def main(
    pictures: str | Path, folder: str | Path = "trained/own_folder", steps: int = 300, episodes: int = 200
) -> list[str]:
    banks = fs.read_folder(pictures, "data/banks", name="pictures", size=SIZE, fractions=(0.5, 0.25, 0.25))
    train, val, test = (fs.Sampler(banks[split], way=3, shot=1, query=3) for split in ("train", "val", "test"))
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 3),
    )  # fmt: skip
    trained = fs.train(fs.FOMAML(network), train, steps=steps, validation=val, folder=folder)  # continues what is there
    scores = fs.evaluate(trained, test, episodes=episodes)
    print(f"accuracy on new classes: {scores.mean():.3f} ± {fs.ci95(scores):.3f}")

    bank = banks["test"]  # as if its images were new: the first of three classes is known, the next two are asked for
    paths = [Path(pictures) / name for name in bank.image_names()]
    starts = bank.offsets[:3].tolist()
    classifier = trained.adapt(trained.read_images(paths[row] for row in starts), bank.names[:3])
    queries = [path for row in starts for path in paths[row + 1 : row + 3]]
    labels = classifier.predict(trained.read_images(queries)).tolist()
    for path, label in zip(queries, labels, strict=True):
        print(f"{path} is taken for {label}")
    return labels


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder of your class folders: python examples/own_folder.py pictures")
    try:
        main(sys.argv[1])
    except fs.FewshotError as error:
        sys.exit(f"error: {error}")
