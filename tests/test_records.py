"""Files are written beside and renamed; what is no regular file is written to as it is."""

import os
import threading
from pathlib import Path

import msgspec
import pytest

from bezoar.errors import InputError
from bezoar.records import read_toml, write_bytes, write_json, write_text

FULL = Path("/dev/full")


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_renewed_and_nothing_else_is_left(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]


def test_a_link_stays_and_what_it_leads_to_is_renewed(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "real")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "real").read_bytes() == b"new"
    assert names(tmp_path / "deep") == ["real"]


def test_what_is_no_text_is_spelled_out(tmp_path):
    write_text(tmp_path / "a", "é w\udcff")
    assert (tmp_path / "a").read_bytes() == "é w\\udcff".encode()


def test_what_is_no_text_is_spelled_out_in_json_too(tmp_path):
    write_json(tmp_path / "a", {"w\udcff": ["w\udcff.pt", "é", "✓"]})
    assert msgspec.json.decode((tmp_path / "a").read_bytes()) == {
        "w\\udcff": ["w\\udcff.pt", "é", "✓"]
    }


@pytest.mark.parametrize("name", ["x" * 300, "file/below/a"])
def test_a_name_that_no_file_can_have_is_one_sentence(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"be written: (File name too long|Not a directory)"):
        write_text(tmp_path / name, "a")
    assert names(tmp_path) == ["file"]


def test_two_writers_do_not_meet(tmp_path):
    """Not even as two containers with one process id."""
    failed = []

    def write(content):
        for _ in range(100):
            try:
                write_bytes(tmp_path / "a", content)
            except InputError as error:
                failed.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in (b"one", b"two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == [] and names(tmp_path) == ["a"]


def test_toml_may_begin_with_a_mark(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(tmp_path / "a.toml") == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_gets_what_is_written_and_stays_one(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_bytes(pipe, b"through")
    reader.join(10)
    assert got == [b"through"] and not pipe.is_file() and names(tmp_path) == ["pipe"]


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_device_that_is_full_is_an_error_and_stays_a_device(tmp_path):
    link = tmp_path / "link"  # should the test fail, it is the link that is lost
    link.symlink_to(FULL)
    with pytest.raises(InputError, match="No space left"):
        write_bytes(link, b"much")
    assert link.is_symlink() and not FULL.is_file()
