"""Real clients of the service, each as PyPI has it, in an environment of its own."""
