"""One owner of a run's folder at a time."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evolora.errors import InputError
from evolora.lock import LOCK, owned

_OWNER = """
import sys, time
from pathlib import Path
from evolora.lock import owned

def lasting():
    print("child", flush=True)
    time.sleep(60)

with owned(Path(sys.argv[1]), print):
    print("owns", flush=True)
    {more}
    time.sleep(60)
"""


def owner(folder: Path, more: str = "") -> "subprocess.Popen[str]":
    """Another process that owns the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER.format(more=more), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "owns\n"
    return process


def never(text: str) -> None:
    raise AssertionError(text)


def test_a_second_owner_is_refused_by_number_and_machine(tmp_path: Path) -> None:
    process = owner(tmp_path)
    with pytest.raises(InputError) as refused, owned(tmp_path, never):
        pass
    process.kill()
    process.wait()
    assert f"{tmp_path}: in use by pid {process.pid} on {socket.gethostname()}, expected" in str(refused.value)
    assert (tmp_path / LOCK).exists(), "its text is stale now, and no obstacle"
    with owned(tmp_path, never):
        assert (tmp_path / LOCK).read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_is_no_second_owner_either(tmp_path: Path) -> None:
    with owned(tmp_path, never):
        with pytest.raises(InputError, match=f"pid {os.getpid()}"), owned(tmp_path, never):
            pass
        with pytest.raises(InputError, match="in use"), owned(tmp_path, never):
            pass
    with owned(tmp_path, never):
        pass


@pytest.mark.parametrize(
    "more",
    [
        "import os\n    if os.fork() == 0: lasting()",
        "import multiprocessing as mp\n    mp.get_context('fork').Process(target=lasting).start()",
        "import subprocess\n    subprocess.Popen(['sh', '-c', 'echo child; exec sleep 60'], close_fds=False)",
    ],
    ids=["fork", "multiprocessing", "program"],
)
def test_children_do_not_keep_a_dead_owners_lock(more: str, tmp_path: Path) -> None:
    process = owner(tmp_path, more)
    assert process.stdout is not None and process.stdout.readline() == "child\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with owned(tmp_path, never):
        pass


def test_a_child_that_leaves_leaves_the_lock(tmp_path: Path) -> None:
    with owned(tmp_path, never):
        child = multiprocessing.get_context("fork").Process(target=_leave, args=[tmp_path])
        child.start()
        child.join()
        with pytest.raises(InputError, match="in use"), owned(tmp_path, never):
            pass


def _leave(folder: Path) -> None:
    with pytest.raises(InputError, match="in use"), owned(folder, never):
        pass


def test_of_many_at_once_one_owns(tmp_path: Path) -> None:
    program = _OWNER.format(more="").replace("time.sleep(60)", "time.sleep(0.05)")
    for _ in range(2):
        processes = [
            subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=-1, stderr=-1, text=True)
            for _ in range(4)
        ]
        for process in processes:
            out, errors = process.communicate(timeout=60)
            assert (out == "owns\n") == (process.returncode == 0)
            assert out or "in use by " in errors
    assert list(tmp_path.iterdir()) == []


def test_where_files_cannot_be_locked_it_is_said_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unable)
    said: list[str] = []
    with owned(tmp_path, said.append):
        pass
    assert len(said) == 1 and str(tmp_path / LOCK) in said[0] and "cannot be locked" in said[0]
