"""Runs as jobs of a Ray cluster: what is sent, what runs there, and how a job is followed."""
