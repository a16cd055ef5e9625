"""What a run came to, in words below its last generation."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evolora.runs.tracking.plain import JsonLines

if TYPE_CHECKING:
    from evolora.runs.run import Result
    from evolora.runs.seeds.run import SeedsResult
    from evolora.runs.tracking.view import View


def say_result(result: "Result", view: "View") -> None:
    summary = result.summary
    if isinstance(view, JsonLines):
        view.tell("end", {"folder": str(result.folder), "summary": summary})
        return
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    tokens, flops = summary["tokens"], summary["flops"]
    operations = sum(flops.values()) - flops["test"]
    print(
        f"\n{summary['task']}, {'held-out ' if summary['held_out'] else ''}test prompts: {summary['test_prompts']}; "
        "the intervals are over prompts alone, not over seeds (--seeds)\n"
        f"  {_base_name(summary):<10}  {figures(base)}\n"
        f"  winner      {figures(winner)}  individual {summary['winner']['id']}, by {summary['winner']['operator']}\n"
        f"{_vote_line(summary)}"
        f"{_followed_line(summary)}"
        f"{_term_lines(base, winner)}"
        f"{_kept_line(summary)}"
        f"{_inspection_lines(summary)}"
        f"{summary['generations']} generation{'s' * (summary['generations'] != 1)} in {summary['seconds']:.1f} s, "
        f"{tokens['evaluation']:,} tokens for evaluation and {tokens['rollout']:,} for rollouts, "
        f"{operations:.2g} FLOPs\n"
        f"adapter: {result.adapter}"
    )
    if result.merged:
        print(f"merged:  {result.merged}")
    if (report := result.folder / "report.html").is_file():
        print(f"report:  {report}")


def _base_name(summary: dict[str, Any]) -> str:
    """What the winner is compared with."""
    return str(summary.get("init", ["base model"])[0])


def figures(test: Mapping[str, Any], *, digits: int = 3) -> str:
    """What an individual is worth, and its interval."""
    from evolora.runs.summary import worth

    reward, (low, high) = worth(test), test["ci95"]
    if reward is None or math.isnan(reward):
        return "- (nothing was scored)"
    if low is None or math.isnan(low):
        return f"{reward:.{digits}f} (no interval)"
    return f"{reward:.{digits}f} (95% {low:.{digits}f} to {high:.{digits}f})"


def _followed_line(summary: dict[str, Any]) -> str:
    """What RL followed, where that is not what the figures are of."""
    if "fitness" not in summary:
        return ""
    before, after = (summary[who]["test"]["reward"] for who in ("base", "winner"))
    return f"  of the fitness {summary['fitness']}; mean reward {_shown(before)} -> {_shown(after)}\n"


def _kept_line(summary: dict[str, Any]) -> str:
    """How far the winner is from the base, and what it can do in several tries."""
    if "kept" not in summary:
        return ""
    base, winner = summary["kept"]["base"], summary["kept"]["winner"]
    found = [f"{name} {_shown(base[name])} -> {_shown(winner[name])}" for name in winner if name.startswith("pass@")]
    if "drift" in winner:
        found.append(f"drift {winner['drift']:.3g} nats a token, KL {_shown(winner['kl'])}")
    return f"  kept        {'; '.join(found)}\n"


def _vote_line(summary: dict[str, Any]) -> str:
    if "vote" not in summary:
        return ""
    vote = summary["vote"]
    return f"  vote        {figures(vote['test'])}  of {len(vote['voters'])} finalists\n"


def _term_lines(base: dict[str, Any], winner: dict[str, Any]) -> str:
    """A combined reward's terms, base model and winner."""
    terms = winner.get("terms", {})
    return "".join(f"    {name}: {_shown(base['terms'][name])} -> {_shown(value)}\n" for name, value in terms.items())


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _inspection_lines(summary: dict[str, Any]) -> str:
    if "inspection" not in summary:  # a run that an older version finished
        return ""
    from evolora.runs.report.inspection import Inspection

    return "".join(f"{line}\n" for line in Inspection.from_dict(summary["inspection"]).lines(name=_base_name(summary)))


def say_seeds(result: "SeedsResult", view: "View") -> None:
    from evolora.runs.seeds.summary import lines

    if isinstance(view, JsonLines):
        view.tell("end", {"folder": str(result.folder), "summary": result.summary})
        return
    print("", *lines(result.folder, result.summary), sep="\n")
    if result.merged:
        print(f"merged:  {result.merged}")
    if (report := result.folder / "report.html").is_file():
        print(f"report:  {report}")
