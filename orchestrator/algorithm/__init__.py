"""LaSeR's mathematics as pure functions on tensors: nothing here knows of Ray, vLLM, DeepSpeed or the configuration.

Samples of a rollout batch lie on one flat axis "samples", response tokens on one flat axis "tokens"; `group` gives each
sample's problem. Paper: "LaSeR: Reinforcement Learning with Last-Token Self-Rewarding", arXiv 2510.14943.
"""
