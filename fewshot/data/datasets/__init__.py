"""Where each dataset is, and how its files become banks."""
