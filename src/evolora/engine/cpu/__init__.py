"""An engine on a CPU: compiled products, attention and GPT-2 passes. Imported where it is chosen, and only there."""
