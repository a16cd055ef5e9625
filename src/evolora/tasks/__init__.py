"""Prompts in: bundled tasks, files, reasoning-gym, chat. It knows no model."""
