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

NOT_OURS = ("lost+found",)  # a new file system holds it: a folder with nothing else counts as empty


def free_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """``path``, if a folder may be written there: it does not exist, is empty or, with ``overwrite``, holds files.

    Raises ``FileExistsError`` for any other folder, for a file, and for a folder with files that holds the working
    directory; ``PermissionError`` where the folder cannot be written.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.name not in NOT_OURS)
        if names and not overwrite:
            raise FileExistsError(
                f"{path} exists already and holds {names[0]}: delete it, or give another name, or pass overwrite=True."
            )
        if names and _holds_working_directory(path):
            raise FileExistsError(f"{path} holds the working directory, which is never replaced: give another name.")
    elif path.exists():
        raise FileExistsError(f"{path} is a file: give the name of a folder.")
    _refuse_unwritable(path)
    return path


def free_file(path: str | os.PathLike[str], beside: Sequence[str] = (), overwrite: bool = False) -> Path:
    """``path``, if a file may be written there: none exists or, with ``overwrite``, one does.

    beside: endings that, after the file's name, name the files that belong to it. Raises
    ``FileExistsError`` where one of them exists already or is a folder, ``PermissionError`` where the folder cannot be
    written.
    """
    path = Path(path).expanduser()
    for file in (path, *(path.with_name(path.name + ending) for ending in beside)):
        if file.is_dir():
            raise FileExistsError(f"{file} is a folder: give the name of a file.")
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists already: delete it, or give another name, or pass overwrite=True.")
    _refuse_unwritable(path.parent)
    return path


def check_room(folder: Path, size: int) -> None:
    """Raise ``OSError`` where the disk that holds ``folder``, or will, has less than ``size`` bytes left."""
    if (free := shutil.disk_usage(_existing(folder)).free) < size:
        raise OSError(
            f"{folder} may need {size / 1e6:.0f} MB, and its disk has {free / 1e6:.0f} MB left: make room, or give "
            "another name."
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _refuse_unwritable(folder: Path) -> None:
    existing = _existing(folder)
    if not existing.is_dir():
        raise FileExistsError(f"{existing} is a file: give a name in a folder.")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{existing} cannot be written to: give another name, or grant access.")


def _holds_working_directory(folder: Path) -> bool:
    return Path.cwd().is_relative_to(folder.resolve())


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to write into. When the block ends, its files move to ``folder``; none does on an exception.

    An existing folder trades places with the new one in one step of the file system. Where that is impossible (a
    mounted volume), the old files are moved aside and the new ones in, config.json last. If the process is killed in
    between, all old and new files are still on the disk. Raises as ``free_folder`` does.
    """
    target = free_folder(folder, overwrite).resolve()
    inside = target.is_dir() and (
        os.path.ismount(target) or _holds_working_directory(target) or not os.access(target.parent, os.W_OK)
    )
    around = target if inside else target.parent
    around.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=around, prefix=f".{target.name}.unfinished-"))
    try:
        yield unfinished
        if inside:
            replace_files(unfinished, target, _files(target, unfinished), last="config.json")
        elif not target.exists():
            unfinished.chmod(0o755)
            unfinished.rename(target)
        else:
            free_folder(target, overwrite)  # another process may have written there meanwhile
            shutil.copymode(target, unfinished)
            if not _trade_places(unfinished, target):
                inner = Path(tempfile.mkdtemp(dir=target, prefix=f".{target.name}.unfinished-"))
                try:
                    for file in unfinished.iterdir():
                        shutil.move(file, inner / file.name)
                    replace_files(inner, target, _files(target, inner), last="config.json")
                finally:
                    shutil.rmtree(inner, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # it is gone, incomplete, or holds the replaced files


def _files(folder: Path, unfinished: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file != unfinished and file.name not in NOT_OURS]


def _trade_places(one: Path, other: Path) -> bool:
    """Let two folders trade names in one step; False where the operating system or the file system cannot."""
    if sys.platform != "linux":
        return False
    working_directory, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(working_directory, names[0], working_directory, names[1], exchange) == 0


def replace_files(unfinished: Path, folder: Path, old: Sequence[Path], last: str) -> None:
    """Move the files in ``unfinished`` into ``folder``, then delete its files ``old``; an exception undoes it.

    last: the name of the file that makes the others usable. The old one is moved away first, the new one in last.
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
