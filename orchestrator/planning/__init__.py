"""`laser check` and `laser doctor`: what a configuration will do and need, and what this machine has."""
