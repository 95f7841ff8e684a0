"""LaSeR's mathematics as pure functions on tensors, without Ray, vLLM, DeepSpeed or the configuration.

The samples of a rollout batch lie on one flat axis "samples", and their response tokens on one flat axis
"tokens"; `group` gives the problem of each sample. Source: "LaSeR: Reinforcement Learning with Last-Token
Self-Rewarding" (arXiv 2510.14943).
"""
