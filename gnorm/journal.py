"""A journal of a pruning run: one JSON line a finished step, durable, and bound to the run that wrote it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

FORMAT = 1

BEGINNING = b'{"journal": '  # of every journal; a file without it is not a journal and is never written to

LOCK_SECONDS = 10.0  # the kernel of a run that was killed takes a second or two to notice

log = logging.getLogger(__name__)


class InUseError(RuntimeError):
    """Another run is writing the journal."""


class Journal:
    """Lines of JSON in ``path``: a header that identifies the run, then one line for every finished step.

    A context manager. Entering takes the lock, a file ``<path>.lock`` that exists while the run lasts and that a dead
    process does not hold. Entering also reads ``steps``, the steps that an earlier run finished. The header is written
    with the first step, so a run that finishes no step leaves no file behind. With ``path`` None nothing is written.

    Each line ends with a check chained over all lines before it. A line counts only if its bytes are those that were
    written, so an edited, lost or reordered line is noticed. A last line that was cut off while it was written is
    dropped, and the run goes on from the line before.

    Entering raises ``ValueError`` where the file is of another run, of a later format, or was altered;
    ``InUseError``, a ``RuntimeError``, where another run still writes it after ``LOCK_SECONDS``; ``OSError`` where the
    file cannot be read or its lock cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str] | None, header: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.steps: list[dict[str, Any]] = []
        self._header = {"journal": FORMAT, **header}
        self._check = ""
        self._lock = FileLock(f"{path}.lock", timeout=LOCK_SECONDS)

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise InUseError(f"another run is writing {self.path}: wait for it, or stop it.") from None
        try:
            if lines := self._read():
                self._compare(lines[0], json.loads(json.dumps(self._header)))
                self.steps = lines[1:]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock.is_locked:
            with suppress(OSError):  # deleted while it is held: a run that waits for it then makes a new one
                os.unlink(self._lock.lock_file)
            self._lock.release()

    def _read(self) -> list[dict[str, Any]]:
        """The header and the steps of the file, without their checks; an incomplete last line is cut off the file."""
        assert self.path is not None
        raw = self.path.read_bytes() if self.path.exists() else b""
        lines: list[dict[str, Any]] = []
        *whole, torn = raw.split(b"\n")
        for number, text in enumerate(whole, start=1):
            try:
                line = json.loads(text)
                check = line.pop("check")
            except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
                raise ValueError(f"line {number} of {self.path} is not a journal line: delete the file.") from None
            if number == 1 and line.get("journal") != FORMAT:
                raise ValueError(
                    f"{self.path} is of journal format {line.get('journal')}, this version reads {FORMAT}: "
                    "update gnorm, or delete the file."
                )
            self._check = _chained(self._check, line)
            if check != self._check or text != _encoded(line, check):
                raise ValueError(f"line {number} of {self.path} was altered after it was written: delete the file.")
            lines.append(line)
        if torn:
            if not lines and torn[: len(BEGINNING)] != BEGINNING[: len(torn)]:
                raise ValueError(f"{self.path} is not a journal: name another file.")
            log.warning("%s ends in a line that was cut off; the run goes on from the line before.", self.path)
            os.truncate(self.path, len(raw) - len(torn))
        return lines

    def _compare(self, stored: dict[str, Any], header: dict[str, Any]) -> None:
        """``ValueError`` where the header in the file differs from the header of this run."""
        differing = _differing(stored, header)
        if not differing:
            return
        remedy = "delete it, or name another"
        if "versions" in differing:  # what else differs may follow from them
            before, now = (each.get("versions") or {} for each in (stored, header))
            others = [f"{name} {before.get(name)}, now {now.get(name)}" for name in _differing(before, now)]
            remedy = f"install the versions that it was written with ({'; '.join(others)}), or delete it"
        raise ValueError(f"{self.path} is the journal of another run ({', '.join(differing)} differ): {remedy}.")

    def append(self, step: Mapping[str, Any]) -> None:
        """Write one finished step and return when it is on the disk.

        Raises ``OSError`` where that fails; the file then ends with the step before.
        """
        if self.path is None:
            return
        content = b""
        for line in [step] if self._check else [self._header, step]:
            self._check = _chained(self._check, line)
            content += _encoded(line, self._check) + b"\n"
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(size)
                raise OSError(
                    error.errno, f"{error.strerror}; fix that, and the same call goes on from here", str(self.path)
                ) from None


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys under which two mappings do not hold the same, sorted."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _encoded(line: Mapping[str, Any], check: str) -> bytes:
    return json.dumps({**line, "check": check}).encode()


def _chained(before: str, line: Mapping[str, Any]) -> str:
    """The check of a line, from the check of the line before it."""
    return hashlib.sha256((before + json.dumps(line)).encode()).hexdigest()[:16]


def hash_of_model(model: nn.Module) -> str:
    """SHA-256, 16 digits, over the names, types and values of all parameters and buffers."""
    return hash_of_tensors(model.state_dict().items())


# Keys of a configuration that say how a model was saved and run, not what it computes. The precision (dtype) is in the
# header of a journal by itself; a loss sets problem_type.
IGNORED_CONFIG_KEYS = (
    "_name_or_path",
    "architectures",
    "transformers_version",
    "dtype",
    "problem_type",
    "_attn_implementation",
    "attn_implementation",
)


def digest(content: Any, digits: int = 12) -> str:
    """SHA-256, the first ``digits``, of anything that JSON can hold; of the string of anything else."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:digits]


def hash_of_config(config: Any) -> str:
    """SHA-256, 16 digits, over a configuration without ``IGNORED_CONFIG_KEYS``.

    It tells models apart that have the same weights but another activation or another number of heads.
    """
    content = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    return digest({name: value for name, value in content.items() if name not in IGNORED_CONFIG_KEYS}, 16)


def hash_of_tensors(items: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256, 16 digits, over names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in items:
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
