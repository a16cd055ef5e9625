"""How much of an update is kept in memory at a time: less from then on, once memory has run out."""

import threading


class Budget:
    """Tokens whose activations each thread keeps for a gradient. A run's engines share one.

    What has no gradient keeps little and goes whole, until it runs out of memory too: then `of_all`.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens, self.of_all = tokens, False
        self._told = tokens, False
        self._lock = threading.Lock()

    def ran_out(self, tried: int, *, gradient: bool) -> None:
        """Memory ran out with so many tokens: from now on there are half as many at a time, unless another thread has
        made them fewer already.

        >>> budget = Budget(100)
        >>> budget.ran_out(80, gradient=True), budget.ran_out(80, gradient=True), budget.tokens
        (None, None, 40)
        """
        with self._lock:
            self.of_all |= not gradient
            if tried <= self.tokens:
                self.tokens = tried // 2

    def news(self) -> str | None:
        """What there is to say that was not said before."""
        now = self.tokens, self.of_all
        if now == self._told:
            return None
        self._told = now
        kept = "all texts are scored" if self.of_all else "updates keep"
        return f"out of memory: {kept} {self.tokens:,} tokens at a time from now on"
