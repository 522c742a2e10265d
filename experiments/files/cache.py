"""The cache folder, $GNORM_CACHE or ~/.cache/gnorm: each folder in it is made once and appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from .paths import cache_folder


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` in the cache folder. Where it is missing, ``make`` fills it under another name first.

    Two processes never make the same folder. Raises ``OSError`` where the cache folder cannot be written, and whatever
    ``make`` raises; what ``make`` wrote until then is deleted.
    """
    root = cache_folder()
    folder, unfinished = root / name, root / f"{name}.unfinished"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: trained models cannot be kept, name another folder in $GNORM_CACHE",
            str(root),
        ) from None
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            try:
                unfinished.mkdir()
                make(unfinished)
                os.rename(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder
