"""Files of somebody else: a regular one is read, anything else is refused at once."""

import os
import socket
from pathlib import Path

import pytest

from evolora.reading import open_file, read_text


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("é")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "file") == read_text(str(tmp_path / "link")) == "é"


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "loop", "nothing"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    if kind == "pipe":
        os.mkfifo(kind)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(kind)
    elif kind == "folder":
        Path(kind).mkdir()
    elif kind != "nothing":
        Path(kind).symlink_to("/dev/zero" if kind == "device" else kind)
    with pytest.raises(OSError) as caught:
        open_file(tmp_path / kind)
    assert caught.value.strerror
