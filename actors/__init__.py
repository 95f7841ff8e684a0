"""What runs in Ray actors: the rollout, verification and learning pools."""
