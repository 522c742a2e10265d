"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"  # ends the names of files that are being written


def write(path: Path, content: bytes | str) -> Path:
    """Write a file under a temporary name in its folder, then rename it: it appears whole or not at all.

    content: bytes, or text to encode as UTF-8. Returns ``path``. Raises ``OSError`` where that fails; an older file
    then stays as it was.
    """
    return write_together({path: content})


def write_together(files: Mapping[Path, bytes | str]) -> Path:
    """Write files that belong together: all under temporary names first, then renamed. Returns the last path.

    An older file at the last path is deleted before the first file is renamed. So wherever the last file exists, the
    files beside it belong to it.
    Raises ``OSError`` as ``write`` does.
    """
    unfinished: dict[Path, str] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, unfinished[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
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
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write ``content`` as JSON, as ``write`` does; returns ``path``."""
    return write(path, as_json(content))


def as_json(content: Mapping[str, Any]) -> str:
    """JSON text, indented; what JSON cannot hold is written as its string."""
    return json.dumps(content, indent=2, default=str) + "\n"
