"""What `--model` may name, and MLflow's model registry."""
