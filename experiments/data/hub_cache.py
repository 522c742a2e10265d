"""The cache of huggingface_hub on disk: which snapshot a revision stands for, and whether a file is whole.

Also the words for a hub, a disk or a library that fails.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
import safetensors
import sentencepiece
from httpx2 import InvalidURL
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils.sha import git_hash, sha_fileobj

# What a question to the hub may raise: no answer, a refusal, or the words of a proxy or a mirror in its place.
NO_ANSWER = (
    *(HTTPError, InvalidURL, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError),
)


class AssetError(RuntimeError):
    """An asset is missing, cannot be read, or is not what the profile says; the message names it."""


class DamagedError(AssetError):
    """A file in the cache is not what was fetched; the message says whether it was taken out."""


def commit_of(storage: Path, asked: str) -> str:
    """The commit to read of a revision, main if ""; raises ``AssetError`` where the cache does not tell it."""
    revision = asked or constants.DEFAULT_REVISION
    ref = storage / "refs" / revision
    refs = [path.relative_to(storage / "refs").as_posix() for path in storage.glob("refs/**/*") if path.is_file()]
    snapshots = sorted(path.name for path in storage.glob("snapshots/*") if path.is_dir())
    there = f"there is {', '.join(name[:12] for name in snapshots)}" if snapshots else "there is none"
    if ref.is_file():
        commit = ref.read_text("utf-8", errors="replace").strip()
        if commit not in snapshots:
            raise AssetError(
                f"has refs/{revision} point to the snapshot {commit[:40]!r}, which is absent; {there}: fetch it anew"
            )
        return commit
    if revision in snapshots:
        return revision
    if refs:
        raise AssetError(
            f"was fetched from {', '.join(sorted(refs))}, where the profile asks for {revision}: fetch that, or name "
            "the other as `revision` in the profile"
        )
    if len(snapshots) == 1 and not asked:  # fetched by its commit: it is the only one there is
        return snapshots[0]
    if not snapshots:
        raise AssetError("has no snapshot of it")
    raise AssetError(f"has no refs/{revision} to say which snapshot to read; {there}: write the commit into that file")


def expect(folder: Path, name: str) -> None:
    """Raise ``AssetError`` where a snapshot has no file of this name."""
    path = folder / name
    if path.is_dir():
        raise AssetError(f"has a folder in the place of the file {name}: delete it")
    if path.is_symlink() and not path.exists():
        raise AssetError(f"lacks what the link {name} leads to, {os.readlink(path)}: copy blobs and snapshots together")
    if not path.exists():
        raise AssetError(f"lacks {name}")


def why_absent(storage: Path) -> str:
    """Why the cache has nothing of an asset."""
    cache = storage.parent
    if blocked := next((path for path in (cache, *cache.parents) if path.exists() and not path.is_dir()), None):
        return f"{blocked} is a file, not a folder: set HF_HOME to a folder"
    for other in (cache.parent, cache / "hub"):
        if (other / storage.name).is_dir():
            return f"it is not in {cache} but in {other}: set HF_HUB_CACHE to that"
    return f"not in {cache}{'' if cache.is_dir() else ', which is not there: HF_HOME may lead elsewhere'}"


NOT_THE_FILE = {  # what a file begins with that another one took the place of
    b"version https://git-lfs": "it is a pointer of Git LFS, whose file `git lfs pull` brings",
    b"<!doctype html": "it is a web page",
    b"<html": "it is a web page",
}


def flaw_of(path: Path) -> tuple[str, bool]:
    """What is wrong with a file, "" if nothing; and whether its content is, by its hash, what was published.

    A link leads to the content, which the cache names by its SHA-256 or, where the hub keeps it in git, by the SHA-1
    that git gives it. Of a file of another name only the kind is checked. A file is read once in a process, as long
    as it does not change. Raises ``OSError`` where it cannot be read at all.
    """
    about = path.stat()
    return _flaw_of(path.resolve(), path.suffix, about.st_size, about.st_mtime_ns)


@cache
def _flaw_of(path: Path, suffix: str, size: int, changed: int) -> tuple[str, bool]:
    published = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", path.name) is not None
    with path.open("rb") as file:
        begin = file.read(32).lower()
        file.seek(0)
        if published and path.name != (sha_fileobj(file).hex() if len(path.name) == 64 else git_hash(file.read())):
            return "its content is not what its name in the cache says", False
    if not size and suffix in WHOLE:
        return "it is empty", published
    if other := next((what for start, what in NOT_THE_FILE.items() if begin.startswith(start)), ""):
        return other, published
    try:
        WHOLE.get(suffix, Path.stat)(path)
    except pyarrow.lib.ArrowInvalid:
        return "it is not a whole Parquet file", published
    except ValueError as error:
        return str(error), published
    except (EOFError, zipfile.BadZipFile, lzma.LZMAError, safetensors.SafetensorError):
        return "it is not whole", published
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None):  # of the disk, not of the content
            raise
        return "it is not whole", published
    return "", published


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, counted from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"line {number} is not UTF-8") from None
            if "\0" in text:
                raise ValueError(f"line {number} holds zero bytes")
            yield number, text


def _text(path: Path) -> None:
    for _ in _lines(path):
        pass


def _table(path: Path) -> None:
    if sum(not line.isspace() for _, line in _lines(path)) < 2:
        raise ValueError("it has no rows")


def _json(path: Path) -> None:
    """One JSON document, or one in each line."""
    lines = list(_lines(path))
    try:
        if json.loads("".join(line for _, line in lines)) == []:
            raise ValueError("it is an empty list")
    except json.JSONDecodeError as error:
        several = any(line.strip().endswith("}") for _, line in lines[:1])
        for number, line in lines:
            try:
                json.loads(line.strip() or "0")
            except json.JSONDecodeError:
                raise ValueError(f"it is not JSON at line {number if several else error.lineno}") from None


def _parquet(path: Path) -> None:
    if not pyarrow.parquet.read_metadata(path).num_rows:
        raise ValueError("it has no rows")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        if altered := file.testzip():
            raise ValueError(f"{altered} in it was altered")


def _pickle(path: Path) -> None:
    """Torch's zip, or its older format, a bare pickle."""
    with path.open("rb") as file:
        begin = file.read(1)
    if begin != b"\x80":
        _zip(path)


def _read_through(open_file: Callable[[Path], Any], path: Path) -> None:
    with open_file(path) as file:
        while file.read(1 << 20):
            pass


# What tells that a file of a kind is whole: raises an error where it is not.
WHOLE: dict[str, Callable[[Path], Any]] = {
    ".safetensors": lambda path: safetensors.safe_open(path, "pt").__enter__(),
    ".parquet": _parquet,
    ".bin": _pickle,
    ".model": lambda path: sentencepiece.SentencePieceProcessor(model_file=str(path)),
    ".zip": _zip,
    ".gz": partial(_read_through, gzip.open),
    ".bz2": partial(_read_through, bz2.open),
    ".xz": partial(_read_through, lzma.open),
    **dict.fromkeys((".json", ".jsonl"), _json),
    **dict.fromkeys((".csv", ".tsv"), _table),
    ".txt": _text,
}


def refusal(error: Exception) -> str:
    """Why the hub did not give a file or an answer, in a few words."""
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        says = {401: "it may be private or gone", 404: "not found", 429: "too many requests, try again later"}
        what = says.get(code) or ("the hub failed, try again later" if code >= 500 else "refused")
        return f"{constants.ENDPOINT} answered {code} ({what})"
    if isinstance(error, HTTPError | ConnectionError):
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    if isinstance(error, json.JSONDecodeError | LookupError | TypeError | AttributeError):
        return f"{constants.ENDPOINT} does not answer as a hub does: HF_ENDPOINT, or a proxy, may lead elsewhere"
    return reason(error)


def reason(error: BaseException) -> str:
    """What a library says of an error, shortened, and what to do about a disk."""
    while error.__cause__ or (error.__context__ and not error.__suppress_context__):
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, OSError) and error.strerror:
        remedy = REMEDIES.get(error.errno or 0, "")
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}{remedy and f', {remedy}'}"
    if mark := getattr(error, "problem_mark", None):
        return f"line {mark.line + 1} is not YAML"
    if isinstance(error, KeyError):
        return f"there is no {error}"
    said = " ".join(str(error).split()) or type(error).__name__
    return said.rstrip(".:!") if len(said) <= 200 else f"{said[:200]}..."


REMEDIES = {
    errno.ENOSPC: "make room or set HF_HOME, and TMPDIR for temporary files, to a disk that has some",
    errno.EDQUOT: "make room or set HF_HOME, and TMPDIR for temporary files, to a disk that has some",
    errno.EROFS: "set HF_HOME to a folder that can be written, or fetch where this one can",
    errno.EACCES: "grant access or set HF_HOME to a folder of your own",
    errno.EPERM: "grant access or set HF_HOME to a folder of your own",
}
