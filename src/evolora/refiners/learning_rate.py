"""The learning rate over a run: it falls on a schedule, and is led back when updates move the policy far too much or
too little."""

# How many times more or less than the target an update's KL may be before the rate is changed: it is estimated on few
# tokens, and varies by as much from rollout to rollout.
BAND = 6.0
# By how much one rollout changes the rate, at most: up, or down.
_CHANGE = 1.5
# An update that moved the policy this far, in nats a token, has destroyed it: it is taken back, the rate falls by this.
FAR = 1.0
_FALL = 3.0
_RANGE = (1e-3, 1e3)


def decayed(decay: float, progress: float) -> float:
    """What the learning rate is multiplied by when `progress`, from 0 to 1, of a run is done: it falls geometrically by
    the factor `decay` from the beginning to the end, and is as given in the middle.

    >>> [round(decayed(100.0, progress), 6) for progress in (0.0, 0.5, 1.0)]
    [10.0, 1.0, 0.1]
    """
    return float(decay ** (0.5 - min(max(progress, 0.0), 1.0)))


def led(factor: float, kl: float, *, target: float, taken_back: bool = False) -> float:
    """The next factor of the learning rate, after an update that moved the policy by `kl` nats a completion.

    A KL grows with the square of the rate. Within `BAND` times the target and a `BAND`th of it nothing changes; outside
    the factor is multiplied by the root of target / kl, at most by 1.5 and at least by 1 / 1.5, or 1 / 3 after an
    update that was `taken_back`. (Rates that follow the KL in steps of 1.5: Rudin et al., 2022, arXiv 2109.11978.)

    >>> [round(led(1.0, kl, target=0.1), 3) for kl in (0.0, 0.02, 0.1, 0.5, 0.7, 2.0)]
    [1.5, 1.0, 1.0, 1.0, 0.667, 0.667]
    >>> round(led(1.0, 2.0, target=0.1, taken_back=True), 3)
    0.333
    """
    if target / BAND <= kl <= target * BAND:
        return factor
    change = (target / kl) ** 0.5 if kl > 0 else _CHANGE
    lower, upper = _RANGE
    return min(max(factor * min(max(change, 1 / (_FALL if taken_back else _CHANGE)), _CHANGE), lower), upper)
