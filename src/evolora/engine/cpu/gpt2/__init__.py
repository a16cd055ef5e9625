"""GPT-2's passes on a CPU: prefill, decode and training, a compiled function a layer."""
