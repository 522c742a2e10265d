"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NOT_OURS = ("lost+found",)  # what a new file system holds: a folder with nothing else is empty


def free_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Where a folder is to be written: one that does not exist, that is empty or, with ``overwrite``, that holds files.

    Raises ``FileExistsError`` for any other, for a file, and for a folder with files that the process works in;
    ``PermissionError`` where the folder cannot be written.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        held = sorted(file.name for file in path.iterdir() if file.name not in NOT_OURS)
        if held and not overwrite:
            raise FileExistsError(
                f"{path} exists already and holds {held[0]}: delete it, or give another name, or pass overwrite=True."
            )
        if held and _at_work_in(path):
            raise FileExistsError(f"{path} holds the working directory, which is never replaced: give another name.")
    elif path.exists():
        raise FileExistsError(f"{path} is a file: give the name of a folder.")
    _refuse_unwritable(path)
    return path


def free_file(path: str | os.PathLike[str], beside: Sequence[str] = (), overwrite: bool = False) -> Path:
    """Where a file is to be written: one that does not exist or, with ``overwrite``, one that does.

    beside: endings of the name of the files that come with it. Raises ``FileExistsError`` where one of them exists
    already or is a folder, ``PermissionError`` where the folder cannot be written.
    """
    path = Path(path).expanduser()
    for taken in (path, *(path.with_name(path.name + ending) for ending in beside)):
        if taken.is_dir():
            raise FileExistsError(f"{taken} is a folder: give the name of a file.")
        if taken.exists() and not overwrite:
            raise FileExistsError(f"{taken} exists already: delete it, or give another name, or pass overwrite=True.")
    _refuse_unwritable(path.parent)
    return path


def _refuse_unwritable(folder: Path) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise FileExistsError(f"{there} is a file: give a name in a folder.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{there} cannot be written to: give another name, or grant access.")


def _at_work_in(folder: Path) -> bool:
    return Path.cwd().is_relative_to(folder.resolve())


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to write into. Its files come to lie in ``folder`` when the block ends, and nothing does where
    an exception ends it.

    A folder that is there trades places with the new one in one step of the file system. Where it cannot (a mounted
    volume), files are moved within it: the old ones aside, then the new ones in, config.json last. A kill in between
    leaves all of both on the disk. Raises as ``free_folder`` does.
    """
    place = free_folder(folder, overwrite).resolve()
    inside = place.is_dir() and (os.path.ismount(place) or _at_work_in(place) or not os.access(place.parent, os.W_OK))
    around = place if inside else place.parent
    around.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=around, prefix=f".{place.name}.unfinished-"))
    try:
        yield unfinished
        if inside:
            replace_files(unfinished, place, _files(place, unfinished), last="config.json")
        elif not place.exists():
            unfinished.chmod(0o755)
            unfinished.rename(place)
        else:
            free_folder(place, overwrite)  # another process may have written there meanwhile
            shutil.copymode(place, unfinished)
            if not _trade_places(unfinished, place):
                nearer = Path(tempfile.mkdtemp(dir=place, prefix=f".{place.name}.unfinished-"))
                try:
                    for file in unfinished.iterdir():
                        shutil.move(file, nearer / file.name)
                    replace_files(nearer, place, _files(place, nearer), last="config.json")
                finally:
                    shutil.rmtree(nearer, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # nothing, what is not whole, or what was replaced


def _files(folder: Path, unfinished: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file != unfinished and file.name not in NOT_OURS]


def _trade_places(one: Path, other: Path) -> bool:
    """Let two folders trade names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    working_directory, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(working_directory, names[0], working_directory, names[1], exchange) == 0


def replace_files(unfinished: Path, folder: Path, old: Sequence[Path], last: str) -> None:
    """Move the files in ``unfinished`` into ``folder`` and delete ``old``, files there; an exception undoes it.

    last: the file that makes the others usable. It goes first and comes last.
    """
    before = Path(tempfile.mkdtemp(dir=folder, prefix=f".{last}.before-"))
    new = sorted(unfinished.iterdir(), key=lambda file: file.name == last)
    moves = [(file, before / file.name) for file in sorted(old, key=lambda file: file.name != last)]
    moves += [(file, folder / file.name) for file in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        before.rmdir()
        raise
    shutil.rmtree(before, ignore_errors=True)
