"""The base model, its LoRA layout, genomes, cost and export. It knows no engine."""
