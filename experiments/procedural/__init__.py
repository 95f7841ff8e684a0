"""Training on two tasks of reasoning-gym, cold start included."""
