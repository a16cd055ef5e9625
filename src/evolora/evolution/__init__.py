"""The loop, one generation from top to bottom, and how the winner is chosen. It knows no kind of engine."""
