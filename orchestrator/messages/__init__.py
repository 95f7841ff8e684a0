"""Messages between the driver and the actors: requests, trajectories, verdicts, batches and weights."""
