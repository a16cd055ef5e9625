"""The same run under several seeds: its folder, its runs one after another or side by side, its summary."""
