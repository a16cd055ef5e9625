"""The test bed: what evolution earns on a real model, when it judges by what is wanted and RL follows what can be
followed. `run_testbed.py` drives it."""
