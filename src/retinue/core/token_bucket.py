"""How much of what comes is worked on: so many a second, and as many at once after a quiet second."""


class TokenBucket:
    """`rate`: tokens a second, and the most that it holds; it is full at first. Times are in seconds."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._tokens, self._at = rate, rate, now

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take so many tokens, all or none; False when there are not that many."""
        self._tokens = min(self._rate, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True
