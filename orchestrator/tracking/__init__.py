"""MLflow: the record of a run, its delivery to a server, and the runs of sweeps and evaluations."""
