"""Several rewards with weights, as TRL's trainers take them: one expression, in which Python functions are terms."""

from collections.abc import Mapping, Sequence

from evolora.errors import InputError
from evolora.rewards.base import Reward, reward_name
from evolora.rewards.expression import Expression, Node, Number, Product, Sum, Term
from evolora.rewards.loading import parse_reward
from evolora.rewards.options import checked_weights


def weighted(
    rewards: Sequence[Reward | str], weights: Sequence[float] | None = None
) -> tuple[Expression, Mapping[str, Reward]]:
    """The weighted sum of `rewards`, all of weight 1 by default, and the Python functions among them by the text of
    their terms.

    Raises InputError for no reward, for weights that are not as many finite numbers, and for a name that is none.

    >>> def polite(completions):
    ...     return [1.0 for _ in completions]
    >>> expression, functions = weighted([polite, "0.5 * chrf"], [1.0, 2.0])
    >>> str(expression), list(functions)
    ('<function polite> + 2 * 0.5 * chrf', ['<function polite>'])
    """
    if not rewards:
        raise InputError("reward: found an empty list, expected at least one reward")
    weights = checked_weights([1.0] * len(rewards) if weights is None else weights, len(rewards), "reward_weights")
    functions: dict[str, Reward] = {}
    parts: list[Node] = []
    for reward, weight in zip(rewards, weights, strict=True):
        node = parse_reward(reward).root if isinstance(reward, str) else _function_term(reward, functions)
        parts.append(node if weight == 1 else Product((Number(float(weight)), node)))
    return Expression(parts[0] if len(parts) == 1 else Sum((1,) * len(parts), tuple(parts))), functions


def _function_term(reward: Reward, functions: dict[str, Reward]) -> Term:
    if not callable(reward):
        raise InputError(f"reward: found {reward!r}, expected a function or the name of a reward")
    name = f"<function {reward_name(reward)}>"
    if functions.get(name, reward) is not reward:
        raise InputError(f"reward: found two functions of the name {reward_name(reward)}, expected one name each")
    functions[name] = reward
    return Term(name)
