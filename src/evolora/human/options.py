"""Options of human feedback."""

from typing import ClassVar

from evolora.options import Options, option


class HumanOptions(Options):
    """The page on which people vote, with `--reward human`."""

    prefixed: ClassVar[bool] = True

    votes: int = option(20, "votes that each generation waits for (with --reward human)", ge=1, alias="votes")
    host: str = option(
        "127.0.0.1",
        "address on which the rating page answers (with --reward human); others can reach any but this",
        alias="rating_host",
    )
    port: int = option(
        0, "port of the rating page (with --reward human); 0: a free one", ge=0, le=65535, alias="rating_port"
    )
