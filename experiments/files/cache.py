"""The cache folder, $GNORM_CACHE or ~/.cache/gnorm: each folder in it is made once and appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gnorm.storage.files import delete_unfinished, whole

from .locks import locked_file
from .paths import cache_folder


def cached_folder(name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` in the cache folder. Where it is missing, ``make`` fills it under another name first.

    Two processes never make the same folder. Raises ``OSError`` where the cache folder cannot be written, and whatever
    ``make`` raises; what ``make`` wrote until then is deleted.
    """
    root = cache_folder()
    folder = root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: trained models cannot be kept, name another folder in $GNORM_CACHE",
            str(root),
        ) from None
    with locked_file(root / f"{name}.lock", name):
        if not folder.exists():
            delete_unfinished(root)  # of a process that was killed
            with whole(folder) as unfinished:
                unfinished.mkdir()
                make(unfinished)
    return folder
