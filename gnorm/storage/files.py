"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"  # ends the names of files and folders that are being written
RECORD = "GNORM_RECORD"  # an environment variable: the file that ``record`` appends to
DAY = 86_400.0  # seconds
NOT_OURS = ("lost+found",)  # a new file system holds it: a folder with nothing else counts as empty


@contextmanager
def whole(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary path to write a file or a folder at, which becomes ``path`` when the block ends; not on an exception.

    A file replaces an older file in one step. A folder trades places with an older one in one step of the file system.
    Where that is impossible (a mounted volume), the old files are moved aside and the new ones in, config.json last; if
    the process is killed in between, all old and new files are still on the disk. Files in a folder are as readable as
    any new file is, whatever the library that wrote them chose.

    Raises ``OSError`` where that fails, and for a folder that exists as ``free_folder`` does.
    """
    target = Path(path).resolve()
    inside = target.is_dir() and (
        os.path.ismount(target) or _holds_working_directory(target) or not os.access(target.parent, os.W_OK)
    )
    if target.is_dir():
        free_folder(path, overwrite)
    unfinished = _unfinished(target, target if inside else target.parent)
    try:
        yield unfinished
        if unfinished.is_dir():
            if not inside:
                free_folder(target, overwrite)  # another process may have written there meanwhile
            _move_folder(unfinished, target, inside)
        else:
            os.replace(unfinished, target)
    finally:
        _delete(unfinished)  # it is gone, incomplete, or holds the replaced files


def _unfinished(target: Path, folder: Path) -> Path:
    """A path for what becomes ``target``. Its name tells the machine and the process that write it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{target.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{UNFINISHED}"


def _host() -> str:
    """This machine, as the names of unfinished files have it: no dots."""
    return socket.gethostname().partition(".")[0]


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def _move_folder(unfinished: Path, target: Path, inside: bool) -> None:
    """Move a folder to its place, or its files into it. inside: ``unfinished`` lies in the target."""
    probe = unfinished / UNFINISHED
    probe.touch()
    for file in unfinished.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(probe.stat().st_mode)  # safetensors writes files that their owner alone may read
    probe.unlink()
    if not target.exists():
        unfinished.rename(target)
        return
    if not inside:
        shutil.copymode(target, unfinished)
        if _trade_places(unfinished, target):
            return
    old = [file for file in target.iterdir() if file != unfinished and file.name not in NOT_OURS]
    with moved_together(target, old, last="config.json") as inner:
        for file in unfinished.iterdir():
            shutil.move(file, inner / file.name)


def _trade_places(one: Path, other: Path) -> bool:
    """Let two folders trade names in one step; False where the operating system or the file system cannot."""
    if sys.platform != "linux":
        return False
    working_directory, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(working_directory, names[0], working_directory, names[1], exchange) == 0


@contextmanager
def moved_together(folder: Path, old: Sequence[Path], last: str) -> Iterator[Path]:
    """A temporary folder to write into; as the block ends, its files replace the files ``old`` in ``folder``.

    An exception undoes it. last: the name of the file that makes the others usable. The old one is moved away first,
    the new one in last.
    """
    unfinished = _unfinished(folder / last, folder)
    before = unfinished.with_suffix(".before")
    done: list[tuple[Path, Path]] = []
    unfinished.mkdir()
    try:
        yield unfinished
        before.mkdir()
        new = sorted(unfinished.iterdir(), key=lambda file: file.name == last)
        moves = [(file, before / file.name) for file in sorted(old, key=lambda file: file.name != last)]
        for source, target in [*moves, *((file, folder / file.name) for file in new)]:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        if before.exists():
            before.rmdir()
        raise
    else:
        _delete(before)
    finally:
        _delete(unfinished)


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, text as UTF-8; it appears whole or not at all. Returns ``path``.

    Raises ``OSError`` where that fails; an older file then stays as it was.
    """
    return write_together({path: content})


def write_together(files: Mapping[Path, bytes | str]) -> Path:
    """Write files that belong together: all under temporary names first, then renamed. Returns the last path.

    An older file at the last path is deleted before the first file is renamed. So wherever the last file exists, the
    files beside it belong to it. Files that all hold their content already are left alone: others may be reading them.
    Raises ``OSError`` as ``write`` does.
    """
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    path = list(contents)[-1]
    if len(contents) == 1 or not all(each.exists() and each.read_bytes() == contents[each] for each in contents):
        try:
            with ExitStack() as renamed:  # in the given order, the last entered first
                for path in reversed(contents):
                    with renamed.enter_context(whole(path)).open("xb") as file:
                        file.write(contents[path])
                        file.flush()
                        os.fsync(file.fileno())
                path = list(contents)[-1]
                if len(contents) > 1:
                    path.unlink(missing_ok=True)
        except OSError as error:  # name the file itself, not the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
    record("written", contents)
    return path


def delete_unfinished(folder: Path) -> None:
    """Delete what a process was writing below ``folder``, by ``whole``, when it died.

    Files of another machine count as left over when they are a day old.
    """
    for path in folder.rglob(f".*{UNFINISHED}"):
        *_, host, process, _random = path.name.removesuffix(UNFINISHED).split(".")
        try:
            dead = not _runs(int(process)) if host == _host() else time.time() - path.stat().st_mtime > DAY
        except FileNotFoundError:
            continue  # finished meanwhile
        if dead:
            _delete(path)


def _runs(process: int) -> bool:
    """True if a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def free_folder(path: str | os.PathLike[str], overwrite: bool = False, read: Iterable[Path] = ()) -> Path:
    """``path``, if a folder may be written there: it does not exist, is empty or, with ``overwrite``, holds files.

    Raises ``FileExistsError`` for any other folder, for a file, and for a folder with files that is or holds the
    working directory or one of the absolute paths that were ``read``; ``PermissionError`` where the folder cannot be
    written.
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
        for needed in read if names else ():
            if needed.is_relative_to(path.resolve()):
                raise FileExistsError(f"{path} holds {needed}, which is read and never replaced: give another name.")
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


def record(what: str, paths: Iterable[Path]) -> None:
    """Note that files were "written" or "read", a line of JSON each, in the file that $GNORM_RECORD names, if any."""
    if name := os.environ.get(RECORD):
        with open(name, "a", encoding="utf-8") as file:
            file.writelines(json.dumps([what, str(path.absolute())]) + "\n" for path in paths)


def recorded(what: str, file: Path) -> list[Path]:
    """The files that ``record`` noted as "written" or "read" in ``file``, each once, sorted."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return sorted({Path(path) for noted, path in map(json.loads, lines) if noted == what})


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write ``content`` as JSON, as ``write`` does; returns ``path``."""
    return write(path, as_json(content))


def as_json(content: Mapping[str, Any]) -> str:
    """JSON text, indented; what JSON cannot hold is written as its string."""
    return json.dumps(content, indent=2, default=str) + "\n"
