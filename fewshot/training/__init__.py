"""Meta-training: the loop, the outer optimiser, checkpoints, feature extractors."""
