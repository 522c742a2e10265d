"""Folders and files appear whole or not at all, in an empty folder too, and replace others only where that is asked."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from test_cut_off import disk  # noqa: F401 a fixture

from gnorm.storage import files

NAMES = ("README.md", "config.json", "model.safetensors")


def write(folder, content, overwrite=False):
    with files.whole(files.free_folder(folder, overwrite), overwrite) as unfinished:
        unfinished.mkdir()
        for name in NAMES:
            (unfinished / name).write_text(content)


def read(folder):
    """The files of a folder, by name."""
    return {file.name: file.read_text() for file in folder.iterdir() if file.name != "lost+found"}


def all_of(content):
    return dict.fromkeys(NAMES, content)


@pytest.fixture(params=["exchanged", "moved"])
def way(request, monkeypatch):
    """Both ways in which a folder is replaced: in one step, and file by file where the system knows no such step."""
    if request.param == "moved":
        monkeypatch.setattr(files, "_trade_places", lambda one, other: False)
    return request.param


def test_a_folder_appears_with_those_above_it(tmp_path):
    write(tmp_path / "a" / "b", "new")
    assert read(tmp_path / "a" / "b") == all_of("new")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b"]


def test_an_empty_folder_is_taken_with_its_permissions(tmp_path, way):
    (tmp_path / "b").mkdir(mode=0o700)
    write(tmp_path / "b", "new")
    assert read(tmp_path / "b") == all_of("new")
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_readable_as_the_umask_says(tmp_path, umask, mode, way):
    """safetensors 0.8 writes files that their owner alone may read."""
    (tmp_path / "b").mkdir()
    before = os.umask(umask)
    try:
        with files.whole(tmp_path / "b") as unfinished:
            (unfinished / "inner").mkdir(parents=True)
            for name in ("model.safetensors", "inner/tokenizer.json"):
                (unfinished / name).touch(0o600)
        files.write(tmp_path / "table.csv", "")
    finally:
        os.umask(before)
    for name in ("b/model.safetensors", "b/inner/tokenizer.json", "table.csv"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_folder_that_holds_files_is_refused_and_replaced_where_that_is_asked(tmp_path, way):
    write(tmp_path / "b", "old")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b exists already and holds README.md: delete it, .* overwrite=True"):
        write(tmp_path / "b", "new")
    assert read(tmp_path / "b") == all_of("old") | {"notes.txt": "mine"}
    write(tmp_path / "b", "new", overwrite=True)
    assert read(tmp_path / "b") == all_of("new")
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def test_a_mounted_volume_is_taken_and_replaced_within(disk):  # noqa: F811
    volume = disk("size=1m")
    (volume / "lost+found").mkdir()
    write(volume, "old")
    assert read(volume) == all_of("old")
    with pytest.raises(FileExistsError, match="holds README.md"):
        write(volume, "new")
    write(volume, "new", overwrite=True)
    assert read(volume) == all_of("new")
    assert [file.name for file in volume.parent.iterdir()] == ["disk"]


def test_the_working_directory_is_taken_where_it_is_empty_and_never_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path(), "old")
    assert read(tmp_path) == all_of("old")
    assert Path("config.json").read_text() == "old"  # it is the same folder still
    for folder in (Path(), tmp_path.parent):
        with pytest.raises(FileExistsError, match="holds the working directory, which is never replaced"):
            write(folder, "new", overwrite=True)
    assert read(tmp_path) == all_of("old")


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "old")
    write(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == all_of("new")


def test_the_home_folder_is_written_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.free_folder("~/b") == tmp_path / "b"
    assert files.free_file("~/b.onnx") == tmp_path / "b.onnx"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_is_named(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"file is a file: give"):
        write(tmp_path / name, "new", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=rf"{tmp_path} cannot be written to: give another name"):
        files.free_folder(tmp_path / "a" / "b")


def test_an_exception_leaves_everything_as_it_was(tmp_path, way):
    write(tmp_path / "b", "old")
    for overwrite, folder in ((True, "b"), (False, "c")):
        with pytest.raises(TypeError, match="must be str"):
            write(tmp_path / folder, b"no text", overwrite)
    assert read(tmp_path / "b") == all_of("old")
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def at_move(number, happens, folder, monkeypatch):
    """``happens`` in the place of this of the moves that put a new folder where the old one is."""
    monkeypatch.setattr(files, "_trade_places", lambda one, other: False)
    write(folder, "old")
    moves, rename = iter(range(100)), Path.rename
    monkeypatch.setattr(Path, "rename", lambda *names: happens() if next(moves) == number else rename(*names))


def fails():
    raise OSError("no more")


@pytest.mark.parametrize("failing", range(6))
def test_a_move_that_fails_is_undone(tmp_path, monkeypatch, failing):
    at_move(failing, fails, tmp_path / "b", monkeypatch)
    with pytest.raises(OSError, match="no more"):
        write(tmp_path / "b", "new", overwrite=True)
    assert read(tmp_path / "b") == all_of("old")
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("at", range(6))
def test_a_kill_between_two_moves_loses_neither_the_old_nor_the_new(tmp_path, monkeypatch, at):
    at_move(at, lambda: os._exit(9), tmp_path / "b", monkeypatch)
    if not (child := os.fork()):
        write(tmp_path / "b", "new", overwrite=True)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    found = [(file.name, file.read_text()) for file in (tmp_path / "b").rglob("*") if file.is_file()]
    assert sorted(found) == sorted([*all_of("old").items(), *all_of("new").items()])
    assert not (at and (tmp_path / "b" / "config.json").exists())  # what is mixed is not taken for a model


def test_at_every_moment_a_folder_is_the_old_or_the_new_one(tmp_path):
    """Killed at random moments, while one version after the other is written."""
    folder, generator = tmp_path / "b", random.Random(0)
    write(folder, "0")
    if not files._trade_places(folder, folder):
        pytest.skip("this file system cannot exchange two folders")
    for _ in range(12):
        if not (child := os.fork()):
            for version in range(10**9):
                write(folder, str(version), overwrite=True)
        time.sleep(generator.uniform(0.005, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content = read(folder)
        assert set(content) == set(NAMES)
        assert len(set(content.values())) == 1
