"""Sweeps: many runs over a search space on Ray Tune, which share what they have in common, and one answer in the end."""
