"""The report on runs and sweeps, and what live monitoring needs: boards and rules."""
