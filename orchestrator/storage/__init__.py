"""A run's folder: atomic files, checkpoints, the journal, and the same folder behind a URL."""
