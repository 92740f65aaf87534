"""Files are whole or not there, and a folder is of one process and one setting."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from upsr_jax.files import whole
from upsr_jax.files.whole import (
    check_begun,
    locked,
    read_json,
    remove_parts,
    whole_file,
    whole_folder,
    write_whole,
)


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, events = tmp_path / "a", []
    path.write_bytes(b"old")

    def sync(descriptor):
        events.append((os.fstat(descriptor).st_size, path.read_bytes()))

    monkeypatch.setattr(whole.os, "fsync", sync)
    write_whole(path, b"newer")
    assert events == [(5, b"old")]
    assert path.read_bytes() == b"newer" and os.listdir(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_else(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(whole.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"/a could not be written \(No space left on device\): make"):
        write_whole(tmp_path / "a", b"newer")
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError), whole_file(tmp_path / "a", overwrite=False) as file:
        file.write(b"newer")
    assert (tmp_path / "a").read_bytes() == b"mine" and os.listdir(tmp_path) == ["a"]


def test_what_killed_processes_left_is_removed_and_what_is_being_written_stays(tmp_path):
    (tmp_path / ".upsr-0.part").touch()
    with whole_file(tmp_path / "a") as file:
        (tmp_path / ".upsr-1.part").touch()
        remove_parts(tmp_path)
        assert list(tmp_path.iterdir()) == [Path(file.name)]
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_being_written_stays(tmp_path):
    (tmp_path / ".upsr-0.part").mkdir()
    (tmp_path / ".upsr-0.part" / "file").touch()
    with whole_folder(tmp_path / "a") as part:
        write_whole(part / "file", b"new")
        with whole_folder(tmp_path / "b"):  # which removes what it finds left
            pass
        assert sorted(os.listdir(tmp_path)) == sorted(["b", part.name])
    assert (tmp_path / "a" / "file").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


KILLED = """
import os, signal, sys
from pathlib import Path
from upsr_jax.files.whole import locked, whole_file
Path(sys.argv[1], "b").mkdir()
with locked(Path(sys.argv[1])), whole_file(Path(sys.argv[1], "b", "a")) as file:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_no_lock_and_no_file_of_the_name(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "b" / "a").exists() and len(list(tmp_path.glob("b/.upsr-*.part"))) == 1
    with locked(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == [".lock", "b"] and not os.listdir(tmp_path / "b")


def test_a_locked_folder_is_in_use_until_the_lock_ends(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match=f"another process is writing to {tmp_path}: wait"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_works_too(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        pass


def test_a_folder_goes_on_as_it_was_begun(tmp_path):
    begun = {"seed": 1, "range": [1, 2], "count": 3}
    check_begun(tmp_path, begun, {"seed": 1, "range": (1, 2)})
    with pytest.raises(ValueError, match=rf"{tmp_path} was begun with seed = 1, .* would be '2'"):
        check_begun(tmp_path, begun, {"range": (1, 2), "seed": "2"})
    with pytest.raises(ValueError, match="begun with size = None, and this would be 4: give"):
        check_begun(tmp_path, begun, {"size": 4})


@pytest.mark.parametrize("content", [b"", b'{"seed": ', b"\xff\xfe\0"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json is damaged: remove {tmp_path}, or choose"):
        read_json(tmp_path / "a.json")
