"""One reader per dataset: where its files are, and how they become banks."""
