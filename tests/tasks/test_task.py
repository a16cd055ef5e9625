import codecs
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from evolora.errors import InputError
from evolora.rewards import check_signature, load_reward
from evolora.tasks.chat import Chat, chat_prompt, use_template, with_prompts
from evolora.tasks.task import (
    BUNDLED_TASKS,
    SPLITS,
    Example,
    Task,
    bundled_task,
    capped,
    columns_of,
    load_task,
    messages_of,
    split_by_prompt,
)

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
Write = Callable[[str, object], Path]


def load(
    task: str | None = None,
    data: Path | str | None = None,
    prompt: str | None = None,
    target: str | None = None,
    reward: str | None = None,
    seed: int = 0,
    validation_share: float = 0.15,
    test_share: float = 0.15,
) -> Task:
    return load_task(
        task=task,
        data=data,
        prompt=prompt,
        target=target,
        reward=reward,
        seed=seed,
        validation_share=validation_share,
        test_share=test_share,
    )


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int, **more: object) -> list[dict[str, object]]:
    return [{"prompt": f"p{i}", "target": f"t{i}", **more} for i in range(count)]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def prompts(examples: tuple[Example, ...]) -> set[str]:
    return {example.prompt for example in examples}


def refusal(**options: object) -> str:
    """The message of the InputError, checked to be one sentence."""
    with pytest.raises(InputError) as caught:
        load(**options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    assert "expected" in message
    return message


# --- options ---------------------------------------------------------------------------------------------------


def test_prompt_and_target_are_a_task_that_is_not_held_out() -> None:
    task = load(prompt="Say hello:", target="bonjour")
    assert task.train == task.validation == task.test == (Example("Say hello:", {"target": "bonjour"}),)
    assert (task.name, task.reward, task.columns, task.held_out) == ("prompt", "similarity", ("target",), False)


def test_prompt_alone_needs_a_reward() -> None:
    assert "--reward" in refusal(prompt="Say hello:")
    task = load(prompt="Say hello:", reward="sentiment")
    assert task.reward == "sentiment" and task.columns == () and task.test[0].columns == {}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"task": "translate", "data": "x.jsonl"}, ("--task", "--data")),
        ({"task": "translate", "prompt": "p"}, ("--task", "--prompt")),
        ({"data": "x.jsonl", "prompt": "p"}, ("--data", "--prompt")),
        ({"target": "t"}, ("--target", "--prompt")),
        ({"target": "t", "task": "translate"}, ("--target", "--task")),
        ({"target": "t", "data": "x.jsonl"}, ("--target", "--data")),
        ({"prompt": ""}, ("--prompt", "''")),
        ({"prompt": " \n"}, ("--prompt", "blank")),
        ({"prompt": "\udc80", "target": "t"}, ("--prompt", "UTF-8")),
        ({"prompt": "p", "target": "t", "validation_share": 0.0}, ("validation_share", "0.0")),
        ({"prompt": "p", "target": "t", "validation_share": 0.5, "test_share": 0.5}, ("test_share", "below 1")),
        ({"prompt": "p", "target": "t", "test_share": float("nan")}, ("test_share", "nan")),
        ({"task": "chess"}, ("--task", "'chess'", *BUNDLED_TASKS)),
    ],
)
def test_options_in_conflict_are_refused_by_name(options: dict[str, object], named: tuple[str, ...]) -> None:
    message = refusal(**options)
    assert all(name in message for name in named), message


# --- good data -------------------------------------------------------------------------------------------------


def test_jsonl_and_csv_of_the_same_rows_are_the_same_task(tmp_path: Path) -> None:
    rows = [{"prompt": f'say "{i}", please', "target": f"é{i}\nx", "hint": f"h{i}"} for i in range(10)]
    quoted = "".join(",".join('"' + str(row[name]).replace('"', '""') + '"' for name in row) + "\r\n" for row in rows)
    left = load(data=write(tmp_path, "data.jsonl", jsonl(*rows)))
    right = load(data=write(tmp_path, "data.csv", "prompt,target,hint\r\n" + quoted))
    assert left == right
    assert left.columns == ("target", "hint") and left.name == "data" and left.reward == "similarity"
    assert {e.prompt: e.columns for e in (*left.train, *left.validation, *left.test)} == {
        row["prompt"]: {"target": row["target"], "hint": row["hint"]} for row in rows
    }


def test_jsonl_values_keep_their_types(tmp_path: Path) -> None:
    path = write(tmp_path, "d.jsonl", jsonl(*pairs(2, info={"a": [1, None, True]})))
    assert load(data=path).train[0].columns["info"] == {"a": [1, None, True]}


@pytest.mark.parametrize("name", ["data.jsonl", "DATA.CSV"])
def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path, name: str) -> None:
    body = "prompt,target\r\np0,t0\r\n\r\np1,t1\r\n" if name.endswith("CSV") else "\n\n".join(map(json.dumps, pairs(2)))
    task = load(data=str(write(tmp_path, name, codecs.BOM_UTF8 + body.encode())))
    assert task.train == tuple(Example(f"p{i}", {"target": f"t{i}"}) for i in range(2))


def test_a_split_column_decides_and_is_not_handed_on(tmp_path: Path) -> None:
    named = ["train", "test", "train", "validation", "train"]
    rows = [{**pair, "split": split} for pair, split in zip(pairs(5), named, strict=True)]
    for seed in range(3):
        task = load(data=write(tmp_path, "d.jsonl", jsonl(*rows)), seed=seed)
        assert [e.prompt for e in task.train] == ["p0", "p2", "p4"]
        assert [e.prompt for e in task.validation] == ["p3"] and [e.prompt for e in task.test] == ["p1"]
        assert task.columns == ("target",) and task.held_out


@pytest.mark.parametrize("as_folder", [True, False])
def test_validation_is_split_off_train_where_there_is_none(tmp_path: Path, as_folder: bool) -> None:
    rows, test = pairs(40), [{"prompt": "x", "target": "y"}]
    if as_folder:
        write(tmp_path, "train.jsonl", jsonl(*rows, rows[0]))
        write(tmp_path, "test.jsonl", jsonl(*test))
        path = tmp_path
    else:
        named = [{**row, "split": "train"} for row in (*rows, rows[0])] + [{**row, "split": "test"} for row in test]
        path = write(tmp_path, "d.jsonl", jsonl(*named))
    found = load(data=path, seed=1)
    assert [e.prompt for e in found.test] == ["x"] and found.held_out
    own, others = {e.prompt for e in found.train}, {e.prompt for e in found.validation}
    assert len(others) == 6 and not own & others and own | others == {row["prompt"] for row in rows}
    assert load(data=path, seed=1) == found and load(data=path, seed=2) != found


@pytest.mark.parametrize("missing", [("validation",), ("test",), ("test", "validation")])
def test_splits_that_are_missing_are_split_off_train_and_named(tmp_path: Path, missing: tuple[str, ...]) -> None:
    for split in {*SPLITS} - {*missing}:
        write(tmp_path, f"{split}.jsonl", jsonl(*pairs(40 if split == "train" else 1)))
    task = load(data=tmp_path)
    assert task.split_off == missing
    sizes = {split: len(getattr(task, split)) for split in SPLITS}
    assert sizes == {
        split: 6 if split in missing else 40 - 6 * len(missing) if split == "train" else 1 for split in SPLITS
    }
    if len(missing) == 2:
        whole = load(data=tmp_path / "train.jsonl")
        assert (task.train, task.validation, task.test) == (whole.train, whole.validation, whole.test)
        assert whole.split_off == ()


def test_of_one_training_prompt_validation_is_the_same(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", jsonl(*pairs(1)))
    write(tmp_path, "test.jsonl", jsonl({"prompt": "x", "target": "y"}))
    task = load(data=tmp_path)
    assert task.train == task.validation and len(task.train) == 1 and task.held_out


def test_named_splits_that_share_a_prompt_are_not_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": p, "target": "t", "split": s} for p, s in (("a", "train"), ("b", "validation"), ("b", "test"))]
    assert not load(data=write(tmp_path, "d.jsonl", jsonl(*rows))).held_out


def test_a_folder_of_splits(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", jsonl(*pairs(2)))
    write(tmp_path, "validation.csv", "prompt,target\nv,w\n")
    write(tmp_path, "test.jsonl", jsonl({"target": "y", "prompt": "x"}))
    task = load(data=tmp_path)
    assert [e.prompt for e in task.train] == ["p0", "p1"]
    assert task.validation == (Example("v", {"target": "w"}),) and task.test == (Example("x", {"target": "y"}),)
    assert task.held_out and task.name == tmp_path.name


def test_data_without_a_target_needs_a_reward(tmp_path: Path) -> None:
    path = write(tmp_path, "d.jsonl", jsonl(*({"prompt": f"p{i}", "topic": "x"} for i in range(5))))
    message = refusal(data=path)
    assert str(path) in message and "'target'" in message and "'topic'" in message and "--reward" in message
    assert load(data=path, reward="sentiment").reward == "sentiment"


def test_too_few_prompts_make_three_equal_splits(tmp_path: Path) -> None:
    rows = [*pairs(2), *pairs(2)]
    task = load(data=write(tmp_path, "d.jsonl", jsonl(*rows)))
    assert task.train == task.validation == task.test and len(task.train) == 4 and not task.held_out
    task = load(data=write(tmp_path, "d.jsonl", jsonl(*rows, {"prompt": "p2", "target": "t2"})))
    assert task.held_out and {len(task.validation), len(task.test)} <= {1, 2}


def test_columns_of_keeps_the_order_of_examples() -> None:
    examples = [Example("a", {"target": "A", "n": 1}), Example("b", {"n": 2, "target": "B"})]
    assert columns_of(examples) == {"target": ["A", "B"], "n": [1, 2]}
    assert columns_of([]) == {}


# --- the splitter ----------------------------------------------------------------------------------------------

shares = st.floats(0.01, 0.49)


@given(st.lists(st.text(), min_size=3), st.integers(0, 2**63), shares, shares, st.randoms(use_true_random=False))
def test_the_split_is_a_function_of_the_set_of_prompts(
    texts: list[str], seed: int, validation_share: float, test_share: float, random: object
) -> None:
    def split(of: list[str]) -> dict[str, str] | None:
        return split_by_prompt(of, seed=seed, validation_share=validation_share, test_share=test_share)

    texts = [text.encode(errors="replace").decode() for text in texts]
    found = split(texts)
    count = len(set(texts))
    if count < 3:
        assert found is None
        return
    assert found is not None and found.keys() == set(texts)
    sizes = {name: list(found.values()).count(name) for name in SPLITS}
    assert sum(sizes.values()) == count and min(sizes.values()) >= 1
    assert abs(sizes["test"] - test_share * count) <= 1
    assert abs(sizes["validation"] - validation_share * count) <= 1
    shuffled = texts + texts[:2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split(shuffled) == found


def test_the_split_depends_on_the_seed_and_survives_a_new_prompt() -> None:
    texts = [f"p{i}" for i in range(200)]

    def split(of: list[str], seed: int) -> dict[str, str]:
        found = split_by_prompt(of, seed=seed, validation_share=0.15, test_share=0.15)
        assert found is not None
        return found

    first = split(texts, 0)
    assert sum(first[text] != split(texts, 1)[text] for text in texts) > 40
    assert sum(first[text] != split([*texts, "new"], 0)[text] for text in texts) <= 2
    assert list(first.values()).count("test") == list(first.values()).count("validation") == 30


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), st.integers(0, 10))
def test_loaded_splits_share_no_prompt_and_lose_no_row(
    tmp_path_factory: pytest.TempPathFactory, letters: list[str], seed: int
) -> None:
    rows = [{"prompt": letter, "target": str(i)} for i, letter in enumerate(letters)]
    task = load(data=write(tmp_path_factory.mktemp("data"), "d.jsonl", jsonl(*rows)), seed=seed)
    if len(set(letters)) < 3:
        assert not task.held_out and len(task.train) == len(task.validation) == len(task.test) == len(rows)
        return
    splits = [task.train, task.validation, task.test]
    assert task.held_out and all(splits)
    assert sum(len(prompts(split)) for split in splits) == len(set(letters))
    everything = [example for split in splits for example in split]
    assert {str(e.columns["target"]): e.prompt for e in everything} == {str(i): x for i, x in enumerate(letters)}
    assert len(everything) == len(rows)
    for split in splits:  # rows stay in the order of the file
        order = [int(str(e.columns["target"])) for e in split]
        assert order == sorted(order)


# --- bad data --------------------------------------------------------------------------------------------------

GOOD = '{"prompt": "a", "target": "b"}\n'
TURNS = '{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}\n'
CHAT = '{"prompt": [{"role": "user", "content": "a?"}], "target": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "place", "found"),
    [
        ("d.txt", "a,b\n", "d.txt", "'.txt'"),
        ("d", "a,b\n", "d", "''"),
        ("d.jsonl", "", "d.jsonl", "no rows"),
        ("d.jsonl", "\n \n", "d.jsonl", "no rows"),
        ("d.csv", "", "d.csv", "no rows"),
        ("d.csv", "prompt,target\n", "d.csv", "no rows"),
        ("d.jsonl", GOOD + '{"prompt": "a"\n', "d.jsonl line 2", "column"),
        ("d.jsonl", GOOD + "\n{'prompt': 'a'}\n", "d.jsonl line 3", "not JSON"),
        ("d.jsonl", GOOD + '{"prompt": "a", "target": NaN}\n', "d.jsonl line 2", "NaN"),
        ("d.jsonl", GOOD + "[" * 100_000 + "\n", "d.jsonl line 2", "not JSON"),
        ("d.jsonl", GOOD + '["a", "b"]\n', "d.jsonl line 2", "['a', 'b']"),
        ("d.jsonl", GOOD + "null\n", "d.jsonl line 2", "None"),
        ("d.jsonl", '{"text": "a"}\n', "d.jsonl line 1", "'prompt' but 'text'"),
        ("d.jsonl", "{}\n", "d.jsonl line 1", "'prompt' but no other columns"),
        ("d.jsonl", GOOD + '{"prompt": "", "target": "b"}\n', "d.jsonl line 2", "''"),
        ("d.jsonl", GOOD + '{"prompt": 3, "target": "b"}\n', "d.jsonl line 2", "3"),
        ("d.jsonl", GOOD + '{"prompt": null, "target": "b"}\n', "d.jsonl line 2", "None"),
        ("d.jsonl", GOOD + '{"prompt": ["%s"], "target": "b"}\n' % ("x" * 5000), "d.jsonl line 2", "xxx..."),
        ("d.jsonl", GOOD + '{"prompt": "\\ud800", "target": "b"}\n', "d.jsonl line 2", "UTF-8"),
        ("d.jsonl", GOOD + '{"prompt": "c"}\n', "d.jsonl line 2", "no column 'target'"),
        ("d.jsonl", GOOD + '{"prompt": "c", "target": "d", "x": 1}\n', "d.jsonl line 2", "'x'"),
        ("d.jsonl", '{"prompt": "c", "completions": "d"}\n', "d.jsonl line 1", "'completions'"),
        ("d.jsonl", '{"prompt": "c", "": "d"}\n', "d.jsonl line 1", "without a name"),
        ("d.jsonl", GOOD.encode() + b'{"prompt": "\xff"}\n', "d.jsonl line 2", "0xff at 13"),
        ("d.jsonl", codecs.BOM_UTF8 + b"\xe9\n", "d.jsonl line 1", "0xe9"),
        ("d.jsonl", GOOD.encode("utf-16"), "d.jsonl line 1", "0xff at 1"),
        ("d.jsonl", '{"prompt": "a", "target": "b", "split": "dev"}\n', "d.jsonl line 1", "'dev'"),
        ("d.jsonl", '{"prompt": "a", "target": "b", "split": 1}\n', "d.jsonl line 1", "1"),
        ("d.jsonl", jsonl({"prompt": [], "target": "b"}), "d.jsonl line 1", "[]"),
        ("d.jsonl", CHAT + '{"prompt": [{"role": "user"}], "target": "b"}\n', "d.jsonl line 2", "message 1"),
        (
            "d.jsonl",
            CHAT + '{"prompt": [{"role": "user", "content": 3}], "target": "b"}\n',
            "d.jsonl line 2",
            "content 3",
        ),
        ("d.jsonl", CHAT + '{"prompt": [{"role": "", "content": "a"}], "target": "b"}\n', "d.jsonl line 2", "role ''"),
        ("d.jsonl", CHAT.replace("user", "assistant"), "d.jsonl line 1", "message of the assistant"),
        ("d.jsonl", CHAT.replace("a?", "\\ud800"), "d.jsonl line 1", "UTF-8"),
        ("d.json", '[{"prompt": "a", "target": "b"},\n {"prompt": "c"}]', "d.json line 2", "no column 'target'"),
        ("d.json", "[\n" + GOOD + GOOD + "]", "d.json line 3", "Expecting ',' or ']' at column 1"),
        ("d.json", "[" + GOOD + ",\n]", "d.json line 3", "Expecting value at column 1"),
        ("d.json", "[" + GOOD, "d.json line 2", "Expecting ',' or ']'"),
        ("d.json", "[" + GOOD + "]\n\n" + GOOD, "d.json line 4", "behind the array"),
        ("d.json", "[" + GOOD + ",\n[3]]", "d.json line 3", "[3], expected a JSON object"),
        ("d.json", "[\n" + "[" * 100_000, "d.json line 2", "not JSON"),
        ("d.json", '[\n{"prompt": NaN}]', "d.json line 2", "NaN"),
        ("d.json", "[ ]", "d.json", "no rows"),
        ("d.json", GOOD + "3\n", "d.json line 2", "3, expected a JSON object"),
        ("d.json", '{\n"prompt": "a"}', "d.json line 1", "not JSON"),
        ("d.json", b'[{"prompt": "a"},\n{"prompt": "\xe9"}]', "d.json line 2", "0xe9"),
        ("d.parquet", b"PAR1", "d.parquet", "not Parquet"),
        ("d.jsonl", jsonl({"prompt": "a", "target": "b", "images": ["c.png"]}), "d.jsonl line 1", "'images'"),
        ("d.jsonl", CHAT + CHAT.replace('"a?"', "[3]"), "d.jsonl line 2", "content 3, expected text, or blocks"),
        ("d.jsonl", CHAT.replace('"a?"', '[{"type": "text"}]'), "d.jsonl line 1", "blocks of text"),
        ("d.jsonl", CHAT.replace('"a?"', '[{"type": "image"}]'), "d.jsonl line 1", "'image', expected text alone"),
        ("d.jsonl", CHAT.replace('"a?"', '"a?", "x": 1'), "d.jsonl line 1", "expected an object with a role"),
        ("d.jsonl", CHAT.replace('"a?"', '"a", "tool_calls": "x"'), "d.jsonl line 1", "tool_calls 'x', expected"),
        ("d.jsonl", CHAT.replace('"b"', '"b", "tools": "add"'), "d.jsonl line 1", "tools 'add', expected a list"),
        ("d.jsonl", CHAT.replace('"b"', '"b", "tools": ["add"]'), "d.jsonl line 1", "tools ['add'], expected a list"),
        ("d.jsonl", CHAT.replace('"b"', '"b", "chat_template_kwargs": [1]'), "d.jsonl line 1", "[1], expected an obj"),
        ("d.jsonl", '{"messages": "a"}\n', "d.jsonl line 1", "messages 'a', expected"),
        ("d.jsonl", '{"messages": []}\n', "d.jsonl line 1", "at least one chat message"),
        ("d.jsonl", TURNS.replace("user", "assistant"), "d.jsonl line 1", "ends its prompt with a message"),
        ("d.jsonl", jsonl({"messages": [{"role": "assistant", "content": "a"}]}), "d.jsonl line 1", "only a message"),
        ("d.jsonl", TURNS + TURNS.replace("assistant", "tool"), "d.jsonl line 2", "does not end with a message of the"),
        (
            "d.jsonl",
            TURNS.replace("assistant", "tool") + TURNS,
            "d.jsonl line 2",
            "ends with a message of",
        ),
        ("d.jsonl", CHAT + GOOD, "d.jsonl line 2", "text, expected chat messages"),
        ("d.jsonl", GOOD + CHAT, "d.jsonl line 2", "chat messages, expected text"),
        ("d.csv", "prompt,target\na,b\nc\n", "d.csv line 3", "1 cells"),
        ("d.csv", "prompt,target\na,b\n\nc,d,e\n", "d.csv line 4", "3 cells"),
        ("d.csv", 'prompt,target\n"a\nb",c\n,d\n', "d.csv line 4", "''"),
        ("d.csv", "text,target\na,b\n", "d.csv line 2", "'prompt' but 'text', 'target'"),
        ("d.csv", "prompt,x,x\na,b,c\n", "d.csv line 1", "'x' twice"),
        ("d.csv", "prompt,\na,b\n", "d.csv line 2", "without a name"),
        ("d.csv", 'prompt,target\n"a,b\nc,d\n', "d.csv line 3", "not CSV"),
        ("d.csv", b"prompt,target\na,b\nc,\xe9\n", "d.csv line 3", "0xe9 at 3"),
        ("d.csv", "prompt,target,split\na,b,Test\n", "d.csv line 2", "'Test'"),
    ],
)
def test_bad_data_is_refused_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, place: str, found: str
) -> None:
    message = refusal(data=write(tmp_path, name, content))
    assert re.search(re.escape(f"{tmp_path}/{place}") + r"(?! line)\b", message), message
    assert found in message.removeprefix(str(tmp_path)), message
    assert len(message) < 300 + len(str(tmp_path))


def test_a_split_train_without_rows_is_refused(tmp_path: Path) -> None:
    rows = [{**pair, "split": split} for pair, split in zip(pairs(2), ("validation", "test"), strict=True)]
    path = write(tmp_path, "d.jsonl", jsonl(*rows))
    message = refusal(data=path)
    assert str(path) in message and "'train'" in message


def test_missing_files_are_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "no.jsonl") in refusal(data=tmp_path / "no.jsonl")
    write(tmp_path, "test.jsonl", GOOD)
    assert "has no train.jsonl or train.json or train.csv or train.parquet" in refusal(data=tmp_path)
    write(tmp_path, "train.jsonl", GOOD)
    write(tmp_path, "train.csv", "prompt\na\n")
    assert "has train.jsonl and train.csv, expected one" in refusal(data=tmp_path)


def test_a_folder_is_checked_across_its_files(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", GOOD)
    write(tmp_path, "validation.jsonl", GOOD + jsonl({"prompt": "c"}))
    write(tmp_path, "test.jsonl", "")
    message = refusal(data=tmp_path)
    assert f"{tmp_path}/validation.jsonl line 2" in message and f"{tmp_path}/train.jsonl line 1" in message
    write(tmp_path, "validation.jsonl", GOOD)
    assert f"{tmp_path}/test.jsonl has no rows" in refusal(data=tmp_path)
    for split in SPLITS:
        write(tmp_path, f"{split}.jsonl", jsonl({"prompt": "a", "target": "b", "split": "train"}))
    assert "its file or data set already says" in refusal(data=tmp_path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / "translate" / f"{split}.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"translate/train\.jsonl cannot be read"):
        bundled_task("translate", root=tmp_path)


# --- chat messages ---------------------------------------------------------------------------------------------


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def test_chat_messages_are_carried_and_split_like_text(tmp_path: Path) -> None:
    path = write(tmp_path, "d.jsonl", jsonl(*({"prompt": chat(f"{i}?"), "target": str(i)} for i in range(20))))
    task = load(data=path)
    everything = (*task.train, *task.validation, *task.test)
    assert task.conversational and task.held_out and not load(prompt="a", target="b").conversational
    asked = {str(e.columns["target"]): e.messages for e in everything}
    assert asked == {str(i): tuple(chat(f"{i}?")) for i in range(20)}
    assert messages_of(everything[:2]) == [list(e.messages or ()) for e in everything[:2]]
    assert messages_of([]) is None and messages_of([Example("a", {})]) is None


def with_messages(*turns: tuple[str, object], **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def test_the_last_turn_of_the_assistant_is_the_target(tmp_path: Path) -> None:
    turns = [("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two")]
    task = load(data=write(tmp_path, "d.jsonl", jsonl(with_messages(*turns))))
    assert task.train[0].columns == {"target": "two"} and task.reward == "similarity"
    assert [m["content"] for m in task.train[0].messages or ()] == ["1?", "one", "2?"]
    # A column of that name is the target; without either there is none.
    task = load(data=write(tmp_path, "d.jsonl", jsonl(with_messages(*turns, target="II"))))
    assert task.train[0].columns == {"target": "II"} and len(task.train[0].messages or ()) == 3
    task = load(data=write(tmp_path, "d.jsonl", jsonl(with_messages(*turns[:3]))), reward="sentiment")
    assert task.columns == () and len(task.train[0].messages or ()) == 3
    # The column of prompts comes first, and any column can be named.
    rows = jsonl({**with_messages(*turns), "prompt": "a"})
    task = load(data=write(tmp_path, "d.jsonl", rows), reward="sentiment")
    assert not task.conversational and task.columns == ("messages",)
    task = load_task(data=write(tmp_path, "d.jsonl", rows), prompt_column="messages")
    assert task.conversational and task.train[0].columns == {"prompt": "a", "target": "two"}


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f"{i}!", "answers": [{"role": "assistant", "content": "x"}]} for i in "ab"]
    path = write(tmp_path, "d.jsonl", jsonl(*rows))
    task = load_task(data=path, prompt_column="question", target_column="answer")
    assert task.train[0].prompt == "a?" and task.train[0].columns["target"] == "a!" == task.train[0].columns["answer"]
    task = load_task(data=path, prompt_column="question", target_column="answers")
    assert task.train[0].columns["target"] == "x", "as TRL has a completion"
    for columns, words in (
        ({"prompt_column": "q"}, "line 1 has no column 'q' but 'question', 'answer'"),
        ({"prompt_column": "question", "target_column": "a"}, "line 1 has no column 'a' but 'question', 'answer'"),
        ({"prompt_column": "question", "target_column": "question"}, "--target-column question is the column of the"),
        ({"prompt_column": "question"}, "expected --reward, or --target-column"),
    ):
        with pytest.raises(InputError, match=words):
            load_task(data=path, **columns)  # type: ignore[arg-type]
    path = write(tmp_path, "d.jsonl", jsonl({"prompt": "a", "target": "b", "answer": "c"}))
    with pytest.raises(InputError, match="has a column 'target' beside 'answer'"):
        load_task(data=path, target_column="answer")


def test_blocks_of_text_and_what_templates_print_of_tools(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "?"}]
    asked = [{"role": "user", "content": blocks}, call, {"role": "tool", "content": "3", "name": "add"}]
    row = {"prompt": asked, "target": "b", "tools": json.dumps([{"name": "add"}])}
    example = load(data=write(tmp_path, "d.jsonl", jsonl(row))).train[0]
    assert example.messages == ({"role": "user", "content": "a?"}, {**call, "content": ""}, asked[2])
    assert example.columns["tools"] == [{"name": "add"}]


def test_a_json_array_is_the_same_task_as_its_lines(tmp_path: Path) -> None:
    rows = pairs(9, hint={"x": [1]})
    (one, several) = (json.dumps(rows), json.dumps(rows, indent=2) + "\n\n")
    lines = load(data=write(tmp_path, "d.jsonl", jsonl(*rows)))
    for text in (one, several, jsonl(*rows), "\ufeff\n " + one):
        assert load(data=write(tmp_path, "d.json", text)) == lines


def chat_task(tmp_path: Path) -> Task:
    return load(data=write(tmp_path, "d.jsonl", jsonl(*({"prompt": chat(f"{i}?"), "target": "x"} for i in range(9)))))


def test_the_chat_template_makes_the_prompt(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    use_template(tokenizer, tmp_path / "t.jinja")
    task = with_prompts(chat_task(tmp_path), tokenizer, Chat(), source="--data d")
    assert {e.prompt for e in (*task.train, *task.validation, *task.test)} == {
        f"<system>Be brief.\n<user>{i}?\n<assistant>" for i in range(9)
    }
    plain = load(prompt="a", target="b")
    assert with_prompts(plain, tiny_tokenizer, Chat(), source="--data d") is plain
    # What tells two prompts apart may be lost on a template.
    tokenizer.chat_template = "the same"
    assert not with_prompts(chat_task(tmp_path), tokenizer, Chat(), source="--data d").held_out


VARIABLES = "{% if tools %}{{ tools | tojson }}{% endif %}{{ 'think' if think else 'no' }}:" + TEMPLATE


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_a_system_prompt_comes_first(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer, chat = with_template(tiny_tokenizer, TEMPLATE), Chat("Be kind.")
    plain = load(data=write(tmp_path, "d.jsonl", jsonl(*pairs(9))))
    task = with_prompts(plain, tokenizer, chat, source="--data d")
    assert task.conversational and task.test[0].prompt == (
        f"<system>Be kind.\n<user>{plain.test[0].prompt}\n<assistant>"
    )
    assert messages_of(task.test)[0][0] == {"role": "system", "content": "Be kind."}  # type: ignore[index]
    with pytest.raises(InputError, match=r"--data d: .*'Be brief.'.*expected no message of the system beside --sys"):
        with_prompts(chat_task(tmp_path), tokenizer, chat, source="--data d")


def test_the_template_gets_tools_and_variables(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def prompt(row: dict[str, object], template: str = VARIABLES, **kwargs: object) -> str:
        asked = {"prompt": [{"role": "user", "content": "a"}], "target": "b", **row}
        task = load(data=write(tmp_path, "d.jsonl", jsonl(asked)))
        return (
            with_prompts(task, with_template(tiny_tokenizer, template), Chat(None, kwargs), source="d").train[0].prompt
        )

    assert prompt({}) == "no:<user>a\n<assistant>"
    assert prompt({"tools": [{"name": "add"}]}).startswith('[{"name": "add"}]no:')
    assert prompt({"tools": None}) == prompt({"tools": []}) == prompt({})
    assert prompt({}, think=True).startswith("think:")
    assert prompt({"chat_template_kwargs": {"think": True}}).startswith("think:")
    assert prompt({"chat_template_kwargs": {"think": False}}, think=True).startswith("no:"), "the row's own come last"
    with pytest.raises(InputError, match="column 'tools' that the chat template does not print"):
        prompt({"tools": [{"name": "add"}]}, TEMPLATE)
    for name in ("thin", "messages", "tokenize", "add_generation_prompt"):
        with pytest.raises(InputError, match=f"--chat-template-kwargs: found {name}, expected variables"):
            prompt({}, **{name: True})
    text = load(prompt="a", target="b")
    with pytest.raises(InputError, match="holds no chat messages, expected no --chat-template-kwargs"):
        with_prompts(text, tiny_tokenizer, Chat(None, {"think": True}), source="--prompt")


def test_the_begin_of_sequence_token_comes_once(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token, tokenizer.chat_template = "<|end|>", "{{ bos_token }}" + TEMPLATE
    templated = tokenizer.apply_chat_template(chat("a"), add_generation_prompt=True)["input_ids"]
    # A tokenizer that adds none, and one that does.
    for _ in range(2):
        prompt = chat_prompt(tokenizer, chat("a"), source="--data d")
        assert tokenizer(prompt)["input_ids"] == templated
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.bos_token_id)]
        )


def test_messages_without_a_template_are_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    task, tokenizer = chat_task(tmp_path), copy.deepcopy(tiny_tokenizer)
    with pytest.raises(InputError, match=r"--data d\.jsonl.*no chat template.*--chat-template FILE"):
        with_prompts(task, tokenizer, Chat(), source="--data d.jsonl")
    for template, said in (("{{ raise_exception('no system') }}", "no system"), ("{% if %}", "refuses")):
        tokenizer.chat_template = template
        with pytest.raises(InputError, match=said):
            with_prompts(task, tokenizer, Chat(), source="--data d.jsonl")
    for name in ("missing.jinja", "bad.jinja"):
        (tmp_path / "bad.jinja").write_bytes(b"\xff")
        with pytest.raises(InputError, match=rf"--chat-template .*{name}: cannot be read"):
            use_template(tokenizer, tmp_path / name)


# --- bundled tasks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED_TASKS)
def test_a_bundled_task_is_read_from_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for split in SPLITS:
        write(tmp_path / name, f"{split}.jsonl", jsonl({"prompt": split, "target": "t", "level": 1}))
    task = bundled_task(name, root=tmp_path)
    assert [e.prompt for e in (*task.train, *task.validation, *task.test)] == list(SPLITS)
    assert task.reward == BUNDLED_TASKS[name] and task.columns == ("target", "level") and task.held_out


@pytest.mark.parametrize("name", BUNDLED_TASKS)
def test_the_bundled_tasks_are_held_out_and_feed_their_reward(name: str) -> None:
    task = load(task=name)
    check_signature(load_reward(task.reward), task.columns)
    assert task.held_out
    assert not prompts(task.train) & prompts(task.validation)
    assert load(task=name, reward="sentiment").reward == "sentiment"


def test_the_default_task_is_translate() -> None:
    assert load() == bundled_task("translate")


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    def drawn(rows: list[int], seed: int) -> list[str]:
        examples = tuple(Example(f"prompt {row}", {}) for row in rows)
        task = Task("own", examples, examples, examples, "exact", False, ())
        found = capped(task, validation=3, test=5, seed=seed)
        assert len(found.validation) == 3 and found.train == examples
        return [example.prompt for example in found.test]

    rows = list(range(50))
    assert len(drawn(rows, 0)) == 5 and drawn(rows, 0) != drawn(rows, 1)
    assert sorted(drawn(rows[::-1], 0)) == sorted(drawn(rows, 0))
    assert drawn(rows, 0) == sorted(drawn(rows, 0), key=lambda prompt: int(prompt.split()[1])), "in their order"


@pytest.mark.parametrize("value", ["\\ud800", ["\\ud800"]])
def test_half_of_a_surrogate_pair_in_a_column(value: object, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "a", "target": value}).replace("\\\\", "\\") + "\n")
    with pytest.raises(InputError, match="line 1 has the 'target'"):
        load_task(data=path)
