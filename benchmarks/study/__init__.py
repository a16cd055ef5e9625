"""The study: methods x tasks x seeds at the same cost, its statistics, plots and claims. `run_study.py` drives it."""
