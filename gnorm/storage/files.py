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
    """Write a file under a temporary name in its folder and rename it, so that it is there whole or not at all.

    Raises ``OSError`` where that fails; a file that was there before is then what it was.
    """
    return write_together({path: content})


def write_together(files: Mapping[Path, bytes | str]) -> Path:
    """Write files that belong together: all under temporary names first, then renamed. Returns the last path.

    An older file of the last name goes before the first is renamed: where there is one, the others are its own.
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
        if isinstance(error, OSError):  # by the name that is meant, not the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    return write(path, as_json(content))


def as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"
