"""The evaluation of a model on problem sets: `laser eval`, and the figures and votes that training shares."""
