"""Everything that is asked of a model: generate, score, and the gradient of the genomes.

`evolora.engine.base` is the door; nothing else asks a model. It knows no rewards, strategies or runs.
"""
