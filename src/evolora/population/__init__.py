"""The shared nouns: individual, population, evaluation, lineage. It knows no strategy."""
