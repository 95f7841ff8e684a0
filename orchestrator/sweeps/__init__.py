"""Sweeps: many runs over a search space on Ray Tune, with shared first steps and one best point."""
