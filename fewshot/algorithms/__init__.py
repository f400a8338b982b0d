"""Meta-learning algorithms, each written for one task; `fewshot.engine.engine` runs many at once."""
