"""Ray: nodes, the resources that a run needs, and its placement group."""
