"""Your own tensors: meta-train on some classes, test on others, then label new examples from one example each.

    python examples/own_tensors.py

Replace `make_data` by your own arrays: images [M, C, H, W] (uint8, or floats), or features [M, D], and a label each.
"""

import torch
from torch import nn

import fewshot as fs


def make_data(classes: int, each: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Images [M, 1, 12, 12] of some classes, each a pattern under noise, in random order; and their names."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, 1, 1, 12, 12, generator=generator)
    x = 0.5 * patterns + 0.5 * torch.rand(classes, each, 1, 12, 12, generator=generator)
    y = [f"class {seed}.{number}" for number in range(classes) for _ in range(each)]
    order = torch.randperm(len(y), generator=generator).tolist()
    return x.flatten(0, 1)[order], [y[row] for row in order]


def main(steps: int = 200, episodes: int = 200) -> float:
    train, test = (fs.Bank.from_tensors(*make_data(20, 20, seed), split=str(seed)) for seed in (0, 1))
    # 144 = 1 * 12 * 12, the values of an image; 5 outputs, the ways of a task
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 5))

    trained = fs.train(fs.MAML(network), fs.Sampler(train, way=5, shot=1), steps=steps)
    scores = fs.evaluate(trained, fs.Sampler(test, way=5, shot=1), episodes=episodes)
    print(f"accuracy on new classes: {scores.mean():.3f} ± {fs.ci95(scores):.3f}")

    x, y = make_data(5, 4, seed=2)
    first = {label: row for row, label in reversed(list(enumerate(y)))}  # an example of each class
    support, query = sorted(first.values()), sorted(set(range(len(y))) - set(first.values()))
    classifier = trained.adapt(x[support], [y[row] for row in support])
    labels, probabilities = classifier.predict(x[query]), classifier.predict_proba(x[query])
    for row, label, share in zip(query, labels, probabilities.max(1), strict=True):
        print(f"{y[row]} is taken for {label} ({share:.0%})")
    return float(scores.mean())


if __name__ == "__main__":
    main()
