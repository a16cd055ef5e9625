"""Questions of reasoning-gym (Stojanovski et al., 2025, arXiv 2505.24760), generated in a process of their own, and how
they are written down.

    python gym_items.py < request > rows

Some of its data sets iterate over Python's sets, whose order depends on the process's hash seed, and some draw from the
global random generators. So `gym_task` runs this file with a fixed hash seed: then the same request gives the same
questions in every process. Nothing of evolora is imported here, so that this takes a second.
"""

import dataclasses
import difflib
import json
import os
import random
import sys
from typing import Any

OWN_OPTIONS = ("seed", "size")
"""Options of every data set that are not the user's to set: the run's seed and the number of questions say them."""

# A split is given up when this many times its questions were generated without finding enough that are new.
_MOST_DRAWS = 10


def dump_entry(name: str, options: dict[str, Any], item: dict[str, Any]) -> str:
    """An item, with the data set and its options that made it, as JSON from which `load_entry` makes the same again.

    >>> load_entry(dump_entry("gcd", {}, {"answer": "1", "metadata": {2: (3, 4)}}))
    ('gcd', {}, {'answer': '1', 'metadata': {2: (3, 4)}})
    """
    return json.dumps({"dataset": name, "options": options, "item": _plain(item)})


def load_entry(text: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The data set's name, its options and the item of `dump_entry`. Raises ValueError for other text."""
    try:
        value = json.loads(text)
        return value["dataset"], value["options"], _rich(value["item"])
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"the entry is {text!r:.60}, expected the JSON of a reasoning-gym item") from error


def _plain(value: Any) -> Any:
    """JSON knows no tuples, no sets and no keys but text, and some data sets compare with them."""
    if isinstance(value, tuple | set | frozenset):
        kind = "tuple" if isinstance(value, tuple) else "set"
        return {f"<{kind}>": [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(each) for key, each in value.items()}
        return {"<items>": [[_plain(key), _plain(each)] for key, each in value.items()]}
    return value.item() if hasattr(value, "item") else value  # numpy's numbers


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "<tuple>" in value:
        return tuple(_rich(value["<tuple>"]))
    if "<set>" in value:
        return set(_rich(value["<set>"]))
    if "<items>" in value:
        return {_rich(key): _rich(each) for key, each in value["<items>"]}
    return {key: _rich(each) for key, each in value.items()}


def make_dataset(name: str, options: dict[str, Any], **own: int) -> Any:
    """The data set `name` with `options`. Raises ValueError, in words to follow its name, where there is none such."""
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.5)
        meant = f"such as {', '.join(close)}" if close else f"of {len(DATASETS)}, such as gcd or chain_sum"
        raise ValueError(f"is no data set of reasoning-gym, expected one {meant}")
    kind, config = DATASETS[name]
    fields = {field.name: field for field in dataclasses.fields(config)}
    for option, value in options.items():
        _check_option(option, value, fields)
    try:
        settings = config(**options, **own)
        if hasattr(settings, "validate"):
            settings.validate()
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"is refused by its data set ({' '.join(str(error).split())})") from error
    return kind(settings)


def _check_option(option: str, value: Any, fields: dict[str, Any]) -> None:
    known = [field for field in fields if field not in OWN_OPTIONS]
    if option not in known:
        why = "set by --seed and train, validation and test" if option in OWN_OPTIONS else "unknown to its data set"
        raise ValueError(f"has the option {option}, {why}, expected only {', '.join(known)}")
    default = fields[option].default
    kinds: list[tuple[type[Any], Any, str]] = [
        (bool, bool, "true or false"),  # before int, which bool is one of
        (int, int, "a whole number"),
        (float, (int, float), "a number"),
        (str, str, "text"),
        (list, list, "a list in square brackets"),
        (tuple, list, "a list in square brackets"),
    ]
    for kind, accepted, words in kinds:
        if isinstance(default, kind):
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"has {option}={value!r}, expected {words}")
            return


def generate(request: dict[str, Any]) -> list[list[str]]:
    """[split, question, answer, entry] of each question; no question twice, in whatever split."""
    name, options = request["name"], request["options"]
    seen: set[str] = set()
    rows: list[list[str]] = []
    for split, seed, count in request["splits"]:
        draws = _MOST_DRAWS * count + 200
        random.seed(seed)
        dataset = make_dataset(name, options, seed=seed, size=draws)
        found = 0
        for index in range(draws):
            if found == count:
                break
            item = dataset[index]
            question = str(item["question"])
            if question in seen:
                continue
            seen.add(question)
            found += 1
            answer = "" if item["answer"] is None else str(item["answer"])
            rows.append([split, question, answer, dump_entry(name, options, item)])
        if found < count:
            raise ValueError(
                f"has only {found} different questions left for {split} of {count} wanted, expected options that "
                "give more, or smaller train=, validation= and test="
            )
    return rows


def _main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # some data sets print
    request = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"rows": generate(request)}
    except ValueError as error:
        answer = {"refused": str(error)}
    json.dump(answer, answers)
    answers.flush()
    os._exit(0)  # no library's clean-up at exit can spoil what is written


if __name__ == "__main__":
    _main()
