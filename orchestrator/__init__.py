"""The driver of LaSeR Orchestrator: what runs, in what order, and what is recorded."""
