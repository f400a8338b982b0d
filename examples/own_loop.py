"""Your own loop: `engine.outer` gives the outer gradient of a batch of tasks; the update is yours.

    python examples/own_loop.py

`fs.train` does more: it checks that the learner suits the engine, moves all to a GPU, validates, and for some learners
calls `begin_step` before each step (MAML++) or `state_of` at the start (SimpleShot), see `fs.Learner`.
"""

import torch
from torch import nn

import fewshot as fs


def main(steps: int = 300, episodes: int = 200, data: str = "data/banks") -> float:
    banks = fs.read_glyphs(data)  # drawn at the first call
    train, test = (fs.Sampler(banks[split], way=5, shot=1) for split in ("train", "test"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 5))
    learner, engine = fs.MAML(network), fs.Engine()
    params, state = learner.init()  # named tensors: theta; and what tasks hand on, which MAML has none of
    optimizer = torch.optim.Adam(params.values(), lr=0.001)
    for step in range(steps):
        outer = engine.outer(learner, params, state, train.episodes(16 * step, 16))  # tasks 16*step to 16*step + 15
        for name, value in params.items():
            value.grad = outer.gradient[name]
        optimizer.step()
        state = outer.state
        if step % 100 == 0:
            print(f"step {step}: loss {outer.loss.mean():.3f}, accuracy {outer.score.mean():.3f}")
    scores = fs.score_episodes(learner, params, state, test, episodes, setting="inductive", engine=engine)
    print(f"accuracy on new classes: {scores.mean():.3f} ± {fs.ci95(scores):.3f}")
    return float(scores.mean())


if __name__ == "__main__":
    main()
