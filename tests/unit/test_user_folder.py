"""Which folders are this user's alone, so that what is found in them can be relied on."""

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from phi3_batch import user_folder

ANOTHER_USER = 12345

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")


@pytest.fixture(autouse=True)
def nothing_said():
    user_folder._warn_once.cache_clear()


@pytest.fixture
def place(tmp_path):
    """Where a folder is to be, two levels below one that a test may open to others."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home" / "cache" / "models"


def test_a_folder_is_made_for_this_user_alone(place):
    before = os.umask(0)
    try:
        assert user_folder.open_private(place) == place
    finally:
        os.umask(before)
    for made in (place, place.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert user_folder.open_private(place) == place  # and found again


@pytest.mark.parametrize("level", range(3))
def test_a_folder_that_others_can_write_to_or_replace_is_not_used_with_one_line(
    place, caplog, level
):
    user_folder.open_private(place)
    opened = [place, *place.parents][level]
    opened.chmod(0o777)
    for _ in range(2):
        with pytest.raises(PermissionError) as error:
            user_folder.open_private(place)
        said = f"nothing is kept in {opened}, for others can write to it"
        assert str(error.value) == said
    assert caplog.messages == [f"{said}; XDG_CACHE_HOME or TMPDIR names another place"]
    opened.chmod(0o700)  # as the user may
    assert user_folder.open_private(place) == place


def test_in_a_sticky_folder_nobody_else_can_replace_it(place):
    user_folder.open_private(place)
    place.parent.chmod(0o1777)
    assert user_folder.open_private(place) == place
    place.chmod(0o1777)  # but anybody can put files into it
    with pytest.raises(PermissionError, match="others can write to it"):
        user_folder.open_private(place)


@pytest.mark.parametrize("members", [[], ["somebody"]])
def test_a_group_may_write_if_it_is_this_user_alone(place, monkeypatch, members):
    user = pwd.getpwuid(os.getuid())
    group = grp.struct_group((user.pw_name, "x", user.pw_gid, members))
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    user_folder.open_private(place)
    place.parent.chmod(0o770)
    if members:
        with pytest.raises(PermissionError, match="others can write to it"):
            user_folder.open_private(place)
    else:
        assert user_folder.open_private(place) == place


@needs_root
@pytest.mark.parametrize("level", range(3))
def test_a_folder_below_one_of_another_user_is_not_used(place, level):
    user_folder.open_private(place)
    os.chown([place, *place.parents][level], ANOTHER_USER, -1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        user_folder.open_private(place)


@needs_root
def test_a_link_that_another_user_has_planted_is_not_followed(tmp_path, place):
    (tmp_path / "mine").mkdir(mode=0o700)
    place.parent.mkdir(mode=0o1777)
    place.symlink_to(tmp_path / "mine")
    assert user_folder.open_private(place) == tmp_path / "mine"
    os.chown(place, ANOTHER_USER, -1, follow_symlinks=False)
    with pytest.raises(PermissionError, match=f"{place}, for it belongs to another user"):
        user_folder.open_private(place)


def test_a_link_of_ones_own_to_an_open_place_is_not_followed(tmp_path, place):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    place.parent.symlink_to(shared)
    with pytest.raises(PermissionError, match=f"{shared}, for others can write to it"):
        user_folder.open_private(place)


def test_a_file_in_the_way_is_an_os_error(place):
    place.parent.write_text("")
    with pytest.raises(OSError, match="cache"):
        user_folder.open_private(place)


def test_without_a_home_there_are_places_of_ones_own_for_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/tmp")
    own = f"phi3_batch-models-{os.getuid()}"
    assert user_folder.places("models") == [
        tmp_path / "phi3_batch" / "models",
        Path("/tmp", own),
        Path("/var/tmp", own),
    ]
