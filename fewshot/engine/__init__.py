"""How many tasks run at once, and their evaluation."""
