"""An engine on transformers' own layers: any architecture, any device, and the oracle of the others."""
