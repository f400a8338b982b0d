"""Meta-learning algorithms, each written for one task; `fewshot.algorithms.engine` runs many at once."""
