"""Products with frozen weights on a CPU, and the choice of who computes them."""
