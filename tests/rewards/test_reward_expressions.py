"""Sums, products and gates of rewards: what they parse to, what they are worth, how bad ones are refused."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolora.errors import InputError, RewardError
from evolora.rewards import (
    BUILTIN_REWARDS,
    CombinedScorer,
    RewardContext,
    RewardScorer,
    ScoringOptions,
    known_rewards,
    load_reward,
    make_scorer,
    parse_reward,
    register_reward,
)
from evolora.rewards.expression import Argument, Expression, Gate, Node, Number, Product, Sum, Term, parse
from evolora.runs.config_file import read_config
from evolora.runs.options import make_options

NAMES = ("chrf", "json-schema", "own.py:f", "a.b:f")
ARGUMENTS = st.one_of(st.integers(-9, 9), st.floats(-1e3, 1e3), st.booleans(), st.none(), st.text(max_size=8))


def terms() -> st.SearchStrategy[Term]:
    options = st.dictionaries(st.sampled_from(["limit", "text"]), ARGUMENTS, max_size=2).map(lambda d: tuple(d.items()))
    with_options = st.builds(Term, st.sampled_from(NAMES[:2]), st.lists(ARGUMENTS, max_size=2).map(tuple), options)
    return st.one_of(st.sampled_from([Term(name) for name in NAMES]), with_options)


def nodes() -> st.SearchStrategy[Node]:
    leaves = st.one_of(terms(), st.floats(0, 100, allow_subnormal=False).map(lambda x: Number(float(f"{x:g}"))))

    def more(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        sums = several.flatmap(
            lambda parts: st.tuples(*[st.sampled_from([1, -1])] * (len(parts) - 1)).map(
                lambda signs: Sum((1, *signs), parts)
            )
        )
        return st.one_of(sums, several.map(Product), st.builds(Gate, inner, st.sampled_from([">", "<="]), inner))

    return st.recursive(leaves, more, max_leaves=6)


@given(nodes().filter(lambda node: any(node.terms())), st.randoms())
def test_what_is_written_parses_to_what_is_worth_the_same(node: Node, random: object) -> None:
    expression = Expression(node)
    again = parse(str(expression))
    assert str(parse(str(again))) == str(again)
    assert [str(term) for term in again.terms] == [str(term) for term in expression.terms]
    scores = {str(term): np.array([random.random(), math.nan]) for term in expression.terms}  # type: ignore[attr-defined]
    np.testing.assert_allclose(again.combine(scores), expression.combine(scores), atol=1e-300)


@pytest.mark.parametrize(
    "text",
    [
        "a + 0.2 * b", "a - b - c", "-a + 2", "-(a + b) * 3", "a * b - (c - 1) * -2", "(a > 0.5) * b", "a*(b+c<=1)",
        "1e1*a", ".5 * a + 2. * b", "- -a", "((a))",
    ],
)  # fmt: skip
def test_arithmetic_is_pythons(text: str) -> None:
    values = {name: np.array([0.1, 0.6, 0.9])[shift:][:2] for shift, name in enumerate("ab")} | {
        "c": np.array([0.3, 0.5])
    }
    expected = eval(text, {}, values) + np.zeros(2)
    expression = parse(text)
    used = {name: value for name, value in values.items() if name in map(str, expression.terms)}
    np.testing.assert_allclose(expression.combine(used), expected)


def test_arguments_keep_their_types() -> None:
    term = parse(
        """x(3, "a, b)", it's=1)""".replace("it's", "it") + "+ y(p='a\\\\b\\'c', q=true, r=none, s=1.5, t=a/b.json)"
    )
    first, second = term.terms
    assert first.positional == (3, "a, b)") and dict(first.options) == {"it": 1}
    expected: dict[str, Argument] = {"p": "a\\b'c", "q": True, "r": None, "s": 1.5, "t": "a/b.json"}
    assert dict(second.options) == expected


def test_what_is_not_scored() -> None:
    """As in TRL, a sum leaves out what is not scored; a product and a gate need all they have."""
    a, b = np.array([math.nan, 0.5, math.nan]), np.array([0.25, 0.25, math.nan])
    value = {
        text: parse(text).combine({"a": a, "b": b}) for text in ("a + b", "1 - a - b", "a * b", "(a > 0.1) * b + 0 * b")
    }
    np.testing.assert_array_equal(value["a + b"], [0.25, 0.75, math.nan])
    np.testing.assert_array_equal(value["1 - a - b"], [0.75, 0.25, math.nan])
    np.testing.assert_array_equal(value["a * b"], [math.nan, 0.125, math.nan])
    np.testing.assert_array_equal(value["(a > 0.1) * b + 0 * b"], [0.0, 0.25, math.nan])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found the end, expected a number, a reward, path.py:function or '('"),
        ("exact exact", "found 'exact' after 'exact'"),
        ("exact > 0.5", "a gate such as (json > 0) stands in brackets"),
        ("(exact", "found the end after '(exact', expected ')'"),
        ("2 + 3", "found no reward in it"),
        ("1e999 * exact", "found 1e999, expected a finite number"),
        ("nice", "--reward is 'nice', expected one of similarity"),
        ("chrf-brevity", "'chrf-brevity'"),
        ("exact + nice", "'nice'"),
        ("brevity(limit=short)", "limit is 'short', expected a whole number"),
        ("brevity(limit=1.5)", "limit is 1.5, expected a whole number"),
        ("brevity(size=1)", "the option size is unknown, expected at most limit"),
        ("brevity(1, limit=2)", "the option limit is twice"),
        ("brevity(limit=1, limit=2)", "expected limit only once"),
        ("exact(1)", "found 1 arguments, expected none"),
        ("exact(", "found the end"),
        ("python", "found no function, expected python(function=...)"),
        ("missing.py:f", "no file"),
    ],
)
def test_bad_expressions_are_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        make_scorer(parse_reward(text), ["target"], ScoringOptions(), RewardContext())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_paths_become_absolute_and_texts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "own.py").write_text("def f(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    assert str(parse_reward("contains(text=cat)")) == "contains(text=cat)"
    assert str(parse_reward("own.py:f + exact")) == f"{tmp_path}/own.py:f + exact"
    (tmp_path / "own.py").write_text("def f(completions):\n    return [1.0] * len(completions)\n")
    found = parse_reward("own.py:f + exact")  # also where the file is there, as it has to be
    assert [term.name for term in found.terms] == [f"{tmp_path}/own.py:f", "exact"]
    assert parse_reward(str(found)) == found
    whole = parse_reward("a b/own.py:f")
    assert load_reward("a b/own.py:f")(completions=["x"]) == [1.0]
    assert whole.single is not None and whole.single.name == f"{tmp_path}/a b/own.py:f"
    # It is kept as text in config.toml, and parsed again from anywhere.
    monkeypatch.chdir("/")
    assert parse_reward(str(whole)) == whole


def test_a_combination_scores_its_terms_apart() -> None:
    calls: list[str] = []

    def half(completions: Sequence[str], **_: object) -> list[float]:
        calls.append("half")
        return [0.5] * len(completions)

    def picky(completions: Sequence[str], **_: object) -> list[float | None]:
        if "bad" in completions:
            raise KeyError("bad")
        return [None if text == "none" else 1.0 for text in completions]

    scorers = {"half": RewardScorer(half, on_error="skip"), "picky": RewardScorer(picky, on_error="skip")}
    scorer = CombinedScorer(parse("half + 2 * picky"), scorers, failed_reward=-1.0)
    scores = scorer.score(["p"] * 3, ["good", "bad", "none"], {})
    np.testing.assert_array_equal(scores.rewards, [2.5, -1.0, 0.5])
    np.testing.assert_array_equal(scores.failed, [False, True, False])
    np.testing.assert_array_equal(scores.terms["half"], [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(scores.terms["picky"], [1.0, math.nan, math.nan])
    stopping = CombinedScorer(parse("half * picky"), {"half": RewardScorer(half), "picky": RewardScorer(picky)})
    with pytest.raises(RewardError, match="reward picky raised KeyError"):
        stopping.score(["p"], ["bad"], {})


def test_registered_names_take_part() -> None:
    @register_reward("forty-two")
    def answer(completions: Sequence[str], **_: object) -> list[float]:
        return [42.0] * len(completions)

    assert "forty-two" in known_rewards()
    scorer = make_scorer(parse_reward("0.5 * forty-two + exact"), ["target"], ScoringOptions(), RewardContext())
    assert scorer.score(["p"], ["a"], {"target": ["a"]}).rewards.tolist() == [22.0]
    for name in ("", "two words", "3x", "a+b", "x:y"):
        with pytest.raises(InputError, match="expected letters"):
            register_reward(name)


def test_toml_tables_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[[reward]]\nterm = "chrf"\n\n[[reward]]\nterm = "brevity(limit=8)"\nweight = -0.5\ngate = "exact > 0"\n'
    )
    config = make_options(read_config(file))
    assert config.reward.name is not None
    assert str(parse_reward(config.reward.name)) == "chrf + -0.5 * brevity(limit=8) * (exact > 0)"
    for wrong in (
        'term = "chrf"\nwait = 1',
        "weight = 1",
        'term = "chrf"\nweight = "much"',
        'term = "chrf"\nweight = true',
    ):
        file.write_text(f"[[reward]]\n{wrong}\n")
        with pytest.raises(InputError, match=r"\[\[reward\]\] number 1 is .*expected a term"):
            read_config(file)


def test_the_examples_of_the_docs_can_be_read() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "rewards.md").read_text() + (root / "README.md").read_text()
    found = re.findall(r"""--reward (?:'([^']*)'|"([^"]*)"|([^\s`'"]+))""", text)
    specs = {single or double or bare for single, double, bare in found}
    specs = {spec for spec in specs if not spec.startswith("human")}
    assert len(specs) > 25
    for spec in specs:
        parse_reward(spec)
    named = {term.name for spec in specs for term in parse_reward(spec).terms}
    assert set(BUILTIN_REWARDS) - {"similarity", "python", "verifiable"} <= named


def test_labels_show_no_keys_and_no_folders_and_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("")
    texts = [
        "http('https://h/x?key=One')",
        "http('https://h/x?key=Two')",
        f"command('python {tmp_path}/score.py --key S')",
    ]
    labels = list(parse_reward(" + ".join([*texts, "regex('/no/such/file')"])).labels.values())
    assert labels == [
        "http(url='https://h/x?key=***')",
        "http(url='https://h/x?key=***')'",
        "command(command='python score.py --key ***')",
        "regex(pattern=/no/such/file)",
    ]
