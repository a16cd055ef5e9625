"""Attention on a CPU: over a cache, within packed prompts, and along texts in training."""
