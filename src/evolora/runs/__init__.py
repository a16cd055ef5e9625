"""A run from its options to its folder: assembly, checkpoints, tracking, report, and what is done with an adapter."""
