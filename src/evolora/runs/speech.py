"""How options are named to a user: as on the command line, in Python, or in a TOML file.

Messages are written in the command line's words; for Python they are put into Python's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evolora.options import in_python
from evolora.runs.parts import Place, Vocabulary

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)")


@dataclass(frozen=True)
class Speech:
    """The way of one kind of source; `where` is a file's path."""

    kind: Literal["cli", "python", "toml"]
    where: str = ""

    def name(self, word: str) -> str:
        """An option: `--lora-r`, or `lora_r`."""
        if self.kind != "cli" or word.startswith("--"):
            return word
        return "--" + (word if "." in word else word.replace("_", "-"))

    def valued(self, word: str, value: Any) -> str:
        """An option and what it was given."""
        if self.kind == "cli":
            if value is True:
                return self.name(word)
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            return f"{self.name(word)} {text}"
        if self.kind == "toml":
            return f"{self.where}: {word} = {value!r}"
        return f"{word}={value!r}"

    def spoken(self, message: str, vocabulary: Vocabulary, written: Mapping[Place, str]) -> str:
        """A message in the command line's words, in these, options named as they were `written`."""
        if self.kind == "python":
            return in_python(message)

        def as_written(match: re.Match[str]) -> str:
            place = vocabulary.words.get(match[1].replace("-", "_"))
            return (written.get(place, "") if place else "") or match[0]

        return _OPTION.sub(as_written, message)
