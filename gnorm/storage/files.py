"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"  # ends the names of files that are being written
RECORD = "GNORM_RECORD"  # an environment variable: the file that ``record`` appends to
DAY = 86_400.0  # seconds


def write(path: Path, content: bytes | str) -> Path:
    """Write a file under a temporary name in its folder, then rename it: it appears whole or not at all.

    content: bytes, or text to encode as UTF-8. Returns ``path``. Raises ``OSError`` where that fails; an older file
    then stays as it was.
    """
    return write_together({path: content})


def write_together(files: Mapping[Path, bytes | str]) -> Path:
    """Write files that belong together: all under temporary names first, then renamed. Returns the last path.

    An older file at the last path is deleted before the first file is renamed. So wherever the last file exists, the
    files beside it belong to it. Files that all hold their content already are left alone: others may be reading them.
    Raises ``OSError`` as ``write`` does.
    """
    if len(files) > 1 and all(_holds(*item) for item in files.items()):
        record("written", files)
        return list(files)[-1]
    unfinished: dict[Path, str] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{path.name}.{_host()}.{os.getpid()}."
            handle, unfinished[path] = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=UNFINISHED)
            with os.fdopen(handle, "wb") as file:
                file.write(_encoded(content))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(unfinished[path], 0o644)
        if len(files) > 1:
            path.unlink(missing_ok=True)
        for path in files:
            os.replace(unfinished[path], path)
            del unfinished[path]
    except BaseException as error:
        for temporary in unfinished.values():
            os.unlink(temporary)
        if isinstance(error, OSError):  # name the file itself, not the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    record("written", files)
    return path


def _encoded(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _holds(path: Path, content: bytes | str) -> bool:
    return path.exists() and path.read_bytes() == _encoded(content)


def _host() -> str:
    """This machine, as the names of unfinished files have it: no dots."""
    return socket.gethostname().partition(".")[0]


def delete_unfinished(folder: Path) -> None:
    """Delete the files below ``folder`` that a process was writing with ``write_together`` when it died.

    The name of such a file holds the machine and the process. A file of another machine counts as left behind when it
    is a day old.
    """
    for path in folder.rglob(f".*{UNFINISHED}"):
        *_, host, process, _random = path.name.removesuffix(UNFINISHED).split(".")
        try:
            dead = not _runs(int(process)) if host == _host() else time.time() - path.stat().st_mtime > DAY
        except FileNotFoundError:
            continue  # finished meanwhile
        if dead:
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


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
