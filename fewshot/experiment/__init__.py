"""All that knows Hydra: from a configuration to a run and its record."""
