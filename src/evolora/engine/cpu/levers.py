"""What of a CPU engine's speed can be switched off, each by itself: to measure its worth, or to look for a fault."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Levers:
    """All on. What is off is done by torch, by the model's own modules, or not at all."""

    arranged_weights: bool = True
    """Frozen weights are kept as the compiled products read them."""
    gelu: bool = True
    """GELU in one pass over memory."""
    attention: bool = True
    """Attention over few positions, and over the cache, by compiled functions and plain products."""
    forward: bool = True
    """GPT-2's forward pass with less Python."""
    prefill: bool = True
    """Prompts are read through a compiled function a layer."""
    train: bool = True
    """The forward pass of an update and its gradient, compiled between the products."""
    step: bool = True
    """A decoding step compiled."""
    whole_layers: bool = True
    """In a step, and in prefill, whole layers in one compiled function."""
    multi_step: bool = True
    """Several steps of decoding in one compiled function."""
    adapters: bool = True
    """LoRA's products and their dropout compiled."""
    sampling: bool = True
    """The choice of a token compiled."""
    log_probs: bool = True
    """Log-probabilities compiled."""
    packs: bool = True
    """Texts are packed: what they begin with in common is computed once, padding is not."""
    leave: bool = True
    """Rows that have finished leave the batch."""
    trace: bool = True
    """What decoding computed serves the gradient of what it wrote."""
