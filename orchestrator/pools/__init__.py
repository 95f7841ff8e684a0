"""The driver's side of the actors: supervised pools, and groups on their way through them."""
