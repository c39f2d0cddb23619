"""The machine's cache of folders: made once, whole or not at all, checked, and of limited size."""

import os
import threading
import time
from pathlib import Path

import pytest

from phi3_batch import folder_cache
from phi3_batch.folder_cache import FolderCache

SIZE = 1000


class Maker:
    """Makes a folder of one file, and counts how often."""

    def __init__(self, content=b"x" * SIZE, seconds=0.0):
        self.content, self.seconds, self.made = content, seconds, 0

    def __call__(self, folder):
        self.made += 1
        time.sleep(self.seconds)
        (folder / "weights").write_bytes(self.content)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cache(root):
    return FolderCache(root, limit_bytes=3 * SIZE)


def age(folder, seconds):
    then = time.time() - seconds
    os.utime(folder / folder_cache._CHECKSUMS, (then, then))


def test_a_folder_is_made_once(cache, root):
    make = Maker()
    folder = cache.get("key", make, SIZE)
    assert (folder / "weights").read_bytes() == make.content
    assert FolderCache(root, 3 * SIZE).get("key", make, SIZE) == folder
    assert make.made == 1


def test_other_keys_are_other_folders(cache):
    assert cache.get("one", Maker(), SIZE) != cache.get("two", Maker(), SIZE)


def test_a_folder_is_made_once_by_many_at_a_time(root):
    make, found = Maker(seconds=0.2), []

    def get():
        found.append(FolderCache(root, 3 * SIZE).get("key", make, SIZE))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert make.made == 1


def wrong_byte(file):
    content = bytearray(file.read_bytes())
    content[SIZE // 2] ^= 1
    file.write_bytes(bytes(content))


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-1])


def unreadable_checksums(file):
    (file.parent / folder_cache._CHECKSUMS).write_bytes(b"{")


@pytest.mark.parametrize("damage", [wrong_byte, cut_short, Path.unlink, unreadable_checksums])
def test_a_damaged_folder_is_made_again_with_one_line(cache, caplog, damage):
    make = Maker()
    folder = cache.get("key", make, SIZE)
    damage(folder / "weights")
    assert cache.get("key", make, SIZE) == folder
    assert (folder / "weights").read_bytes() == make.content
    assert make.made == 2
    assert caplog.messages == [f"{folder} is damaged, and is made again"]


def test_a_maker_that_fails_leaves_nothing(cache, root):
    def fail(folder):
        (folder / "weights").write_bytes(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache.get("key", fail, SIZE)
    assert [file.name for file in root.iterdir()] == [folder_cache._LOCK]


def test_what_a_killed_process_left_is_removed(cache, root):
    left_over = root / f"other{folder_cache._PART}"
    left_over.mkdir(parents=True)
    cache.get("key", Maker(), SIZE)
    assert not left_over.exists()


def test_what_was_not_used_for_longest_goes_first(root):
    cache = FolderCache(root, limit_bytes=3 * SIZE)
    first, second = (cache.get(key, Maker(), SIZE) for key in ("first", "second"))
    age(first, 100)
    age(second, 200)
    cache.get("first", Maker(), SIZE)  # used now
    cache.get("third", Maker(), SIZE)
    assert first.exists()
    assert not second.exists()


def test_a_folder_that_is_mapped_can_be_evicted(root):
    cache = FolderCache(root, limit_bytes=SIZE)
    with (cache.get("key", Maker(), SIZE) / "weights").open("rb") as opened:
        cache.get("other", Maker(), SIZE)
        assert opened.read() == b"x" * SIZE


def test_a_disk_without_room_is_left_alone(cache, root):
    with pytest.raises(OSError, match="no room for 1000000"):
        cache.get("key", Maker(), 10**15)
    assert not (root / "key").exists()


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        FolderCache(tmp_path / "file" / "cache", SIZE).get("key", Maker(), SIZE)


def test_a_place_of_somebody_else_is_not_trusted(cache, monkeypatch):
    cache.get("key", Maker(), SIZE)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        cache.get("key", Maker(), SIZE)


def test_a_folder_that_others_could_have_made_is_not_used(cache, root):
    planted = cache.get("key", Maker(b"planted"), SIZE)
    planted.rename(root.parent / "elsewhere")
    planted.symlink_to(root.parent / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        cache.get("key", Maker(), SIZE)


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("name", [".", "weights", folder_cache._CHECKSUMS])
def test_a_folder_that_others_have_made_is_made_again(cache, name):
    make = Maker()
    planted = cache.get("key", Maker(b"planted"), SIZE)
    os.chown(planted / name, 12345, -1)
    assert (cache.get("key", make, SIZE) / "weights").read_bytes() == make.content


def test_a_place_that_others_can_write_to_is_not_used(cache, root):
    cache.get("key", Maker(b"planted"), SIZE)
    root.chmod(0o777)
    with pytest.raises(PermissionError, match="others can write to it"):
        cache.get("key", Maker(), SIZE)


def test_a_lock_that_nobody_releases_is_an_os_error(root):
    cache = FolderCache(root, 10**9, lock_timeout_s=0.1)
    root.mkdir()
    with folder_cache.FileLock(root / folder_cache._LOCK), pytest.raises(OSError, match="locked"):
        cache.get("key", Maker(), SIZE)
