"""Files that travel in blocks: the same afterwards, written once, safe when several want them."""

import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from bezoar.executors import file_cache
from bezoar.executors.file_cache import local_copy, pack


class Store:
    """Keeps what is put, and counts what is fetched."""

    def __init__(self):
        self.things, self.fetched = [], 0

    def put(self, thing):
        self.things.append(thing)
        return len(self.things) - 1

    def get(self, number):
        self.fetched += 1
        return self.things[number]


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(file_cache, "BLOCK", 1000)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "images"
    draw = random.Random(0)  # noqa: S311 (no secret)
    for name, size in {"a/1.png": 10, "a/2.png": 2999, "b/x.png": 0, "b/y.png": 1000}.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(draw.randbytes(size))
    (made / "empty class").mkdir()
    return made


def test_a_folder_comes_back_as_it_was(folder, tmp_path, store, small_blocks):
    package = pack(folder, store.put)
    before = tree(folder)
    shutil.rmtree(folder)
    assert package.name == "images" and package.size == 4009
    assert [len(store.things[block]) for block in package.blocks] == [1000] * 4 + [9]
    with local_copy(package, tmp_path / "cache", store.get) as copy:
        assert copy.name == "images" and tree(copy) == before
    assert not list((tmp_path / "cache").glob(".*")), "no half copy stays"


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2500])
def test_a_file_comes_back_as_it_was(size, tmp_path, store, small_blocks):
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "weights.pt").write_bytes(content)
    package = pack(tmp_path / "weights.pt", store.put)
    with local_copy(package, tmp_path / "cache", store.get) as copy:
        assert copy.name == "weights.pt" and copy.read_bytes() == content


def test_it_is_written_once(folder, tmp_path, store):
    package = pack(folder, store.put)
    with local_copy(package, tmp_path / "cache", store.get) as first:
        fetched = store.fetched
        with local_copy(package, tmp_path / "cache", store.get) as second:
            assert first == second
    assert store.fetched == fetched


def test_the_key_follows_name_and_content(folder, tmp_path, store):
    key = pack(folder, store.put).key
    other = tmp_path / "elsewhere" / "images"
    shutil.copytree(folder, other)
    assert pack(other, store.put).key == key
    assert pack(other / "a" / "..", store.put).key == key
    renamed = shutil.copytree(folder, tmp_path / "pictures")
    assert pack(renamed, store.put).key != key
    (other / "a" / "1.png").write_bytes(b"something")
    assert pack(other, store.put).key != key
    (folder / "a" / "1.png").rename(folder / "b" / "1.png")
    assert pack(folder, store.put).key != key


def test_of_a_folder_with_a_pattern_only_what_it_chooses_travels(tmp_path, store):
    folder = tmp_path / "data"
    (folder / "out").mkdir(parents=True)
    for name in ("test-0.parquet", "test-1.parquet", "train-0.parquet", ".test.parquet", "out/a"):
        (folder / name).write_text(name)
    package = pack(folder, store.put, "*test*.parquet")
    (folder / "out" / "b").write_text("a record of a scan")
    (folder / "train-0.parquet").write_text("other")
    again = pack(folder, store.put, "*test*.parquet")
    assert package.key == again.key != pack(folder, store.put).key
    with local_copy(package, tmp_path / "cache", store.get) as copy:
        assert copy.name == "data" and sorted(tree(copy)) == ["test-0.parquet", "test-1.parquet"]
    (folder / "test-1.parquet").write_text("other")
    assert pack(folder, store.put, "*test*.parquet").key != package.key


def test_links_are_followed_and_a_circle_ends(folder, tmp_path, store):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "z.png").write_bytes(b"z")
    (folder / "link").symlink_to(outside)
    (folder / "a" / "z.png").symlink_to(outside / "z.png")
    (folder / "b" / "circle").symlink_to(folder)
    package = pack(folder, store.put)
    shutil.rmtree(outside)
    with local_copy(package, tmp_path / "cache", store.get) as copy:
        assert (copy / "link" / "z.png").read_bytes() == b"z"
        assert (copy / "a" / "z.png").read_bytes() == b"z"
        assert not (copy / "b" / "circle").exists()


def test_what_cannot_be_read_is_an_os_error(tmp_path, store, monkeypatch):
    with pytest.raises(FileNotFoundError):
        pack(tmp_path / "none", store.put)
    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setattr(file_cache, "listing", lambda path, pattern: [(".", 6)])
    with pytest.raises(OSError, match="became shorter while it was read"):
        pack(tmp_path / "a", store.put)


def slow_copy(package, root, things, go, results):
    """Runs in a process of its own."""

    def get(number):
        results.put("fetched")
        time.sleep(0.2)
        return things[number]

    go.wait()
    with local_copy(package, root, get) as copy:
        results.put(copy.read_bytes())


def test_several_processes_at_once_write_one_copy(tmp_path, store):
    (tmp_path / "a").write_bytes(b"words")
    package = pack(tmp_path / "a", store.put)
    context = multiprocessing.get_context("fork")
    go, results = context.Event(), context.SimpleQueue()
    arguments = (package, tmp_path / "cache", store.things, go, results)
    started = [context.Process(target=slow_copy, args=arguments) for _ in range(4)]
    for process in started:
        process.start()
    go.set()
    for process in started:
        process.join(20)
    seen = []
    while not results.empty():
        seen.append(results.get())
    assert seen.count("fetched") == 2, "one block and one list"
    assert seen.count(b"words") == 4


def test_a_writer_that_is_killed_leaves_no_half_copy(tmp_path, store):
    (tmp_path / "a").write_bytes(b"words")
    package = pack(tmp_path / "a", store.put)

    def die(number):
        if number == package.blocks[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return store.get(number)

    def write():
        with local_copy(package, tmp_path / "cache", die):
            pass

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "cache" / package.key).exists()
    with local_copy(package, tmp_path / "cache", store.get) as copy:
        assert copy.read_bytes() == b"words"
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_process_that_is_killed_while_it_makes_room_leaves_no_half_copy(folder, tmp_path, store):
    package, root = pack(folder, store.put), tmp_path / "cache"
    (tmp_path / "a").write_bytes(b"words")
    other = pack(tmp_path / "a", store.put)
    with local_copy(package, root, store.get):
        pass

    def die(path, **_options):
        (path / "images" / "a" / "1.png").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def write():
        file_cache.shutil.rmtree = die  # of the child alone
        with local_copy(other, root, store.get, kept=0):
            pass

    def killed():
        process = multiprocessing.get_context("fork").Process(target=write)
        process.start()
        process.join(20)
        return process.exitcode == -signal.SIGKILL

    assert killed()
    with local_copy(package, root, store.get) as copy:
        assert tree(copy) == tree(folder)
    assert not list(root.glob(".*"))
    assert killed()
    with local_copy(other, root, store.get, kept=0):
        assert not list(root.glob(".*")), "what the other began to remove is gone"


def test_the_longest_unused_copies_give_way_but_none_that_is_read(tmp_path, store):
    packages = []
    for n in range(4):
        path = tmp_path / f"file{n}"
        path.write_bytes(bytes(100))
        packages.append(pack(path, store.put))
    root = tmp_path / "cache"

    def there():
        return [n for n, package in enumerate(packages) if (root / package.key).is_dir()]

    with local_copy(packages[0], root, store.get, kept=250):
        for n in (1, 2):
            with local_copy(packages[n], root, store.get, kept=250):
                pass
            os.utime(root / f"{packages[n].key}.lock", (n, n))
        assert there() == [0, 2], "the second had to go, as the first is read"
        with local_copy(packages[3], root, store.get, kept=250):
            assert there() == [0, 3]
    with local_copy(packages[1], root, store.get, kept=250) as copy:
        assert copy.read_bytes() == bytes(100), "what gave way is written again"
        with Path(root / f"{packages[1].key}.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
