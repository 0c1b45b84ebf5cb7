"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from ditkit.files import new_folder, write_text


def test_a_folder_appears_when_its_block_ends(tmp_path):
    with new_folder(tmp_path / "deep" / "new") as draft:
        (draft / "a.txt").write_text("a")
        assert not (tmp_path / "deep" / "new").exists()
    assert os.listdir(tmp_path / "deep") == ["new"] and (tmp_path / "deep" / "new" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "new") as draft:
        (draft / "a.txt").write_text("a")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_filled_folder_is_refused_and_an_empty_one_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="full: exists already"), new_folder(tmp_path / "full"):
        pass
    assert os.listdir(tmp_path / "full") == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as draft:
        (draft / "a.txt").write_text("a")
    assert os.listdir(tmp_path / "empty") == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_a_folder_has_the_users_permissions(tmp_path, mask, mode):
    """Neither closed to the group that shares it, nor open where the user wants it closed."""
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "new"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode


def test_text_replaces_text_whole(tmp_path):
    write_text(tmp_path / "a" / "x.txt", "one")
    write_text(tmp_path / "a" / "x.txt", "two ε")
    assert (tmp_path / "a" / "x.txt").read_bytes() == "two ε".encode() and os.listdir(tmp_path / "a") == ["x.txt"]
