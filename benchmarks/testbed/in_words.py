"""What a claim's figures say, in a line."""

from collections.abc import Callable

from testbed.arms import ARMS
from testbed.claims import KEPT, Figures


def in_words(name: str, claim: Figures) -> str:
    """The figures that decide a claim, of the runs that are there; "" where there are none."""
    return _OF[name](claim)


def _cold(claim: Figures) -> str:
    return _over(
        {task: min(own["against"].items(), key=_mean) for task, own in claim["tasks"].items() if own["against"]}
    )


def _warm(claim: Figures) -> str:
    return _over(
        {task: (own["best_single"], own["against"][own["best_single"]]) for task, own in claim["tasks"].items()}
    )


def _mean(pair: tuple[str, Figures]) -> float:
    return float(pair[1]["mean"])


def _over(nearest: dict[str, tuple[str, Figures]]) -> str:
    """The hybrid minus the single arm that comes nearest, by task."""
    return "; ".join(f"{task} {interval_in_words(own)} over {ARMS[arm].title}" for task, (arm, own) in nearest.items())


def _parts(claim: Figures) -> str:
    parts = claim["parts"].items()
    return "; ".join(f"{ARMS[arm].title.removeprefix('hybrid ')} {interval_in_words(own)}" for arm, own in parts)


def _kept(claim: Figures) -> str:
    names = {"pass_16": "pass@16", "drift": "drift"}
    said = [f"{title} {interval_in_words(claim[name])}" for name, title in names.items() if name in claim]
    return ", ".join([*said, f"{claim['drift']['pairs']} pairs"]) if said else ""


def _rates(claim: Figures) -> str:
    """The least of the gains at the three rates, as a share of the largest."""
    said = []
    for task, arms in claim["tasks"].items():
        for arm, own in arms.items():
            least, most = min(own["gains"]), max(own["gains"])
            kept = "gains nothing" if own["keeps"] is None else f"keeps {least / most:.0%}"
            said.append(f"{task}: {ARMS[arm].title} {kept}")
    return "; ".join(said) + (f" (expected {KEPT:.0%})" if said else "")


def _tiny(claim: Figures) -> str:
    lost = [
        f"{task} {own['after']:.3f}, before {own['before']['mean']:.3f} from {own['before']['ci95'][0]:.3f}"
        for task, own in claim["tasks"].items()
        if not own["holds"]
    ]
    return "; ".join(lost) or ("no mean is below its interval before" if claim["tasks"] else "")


def interval_in_words(own: Figures) -> str:
    """A mean difference with its 95% interval."""
    low, high = own["ci95"]
    return f"{own['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


_OF: dict[str, Callable[[Figures], str]] = {"A": _cold, "B": _warm, "C": _parts, "D": _kept, "E": _rates, "F": _tiny}
