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


BEGINNING = b'{"journal": '  # of every journal: a file without it is somebody's, and not to be written into


LOCK_SECONDS = 10.0  # the kernel of a run that was killed takes a second or two to notice


log = logging.getLogger(__name__)


class Journal:
    """Lines of JSON in ``path``: a header that says which run this is, then one line for every finished step.

    A context manager. Entering it takes the lock, a file ``<path>.lock`` that is there while the run lasts and that a
    dead process does not hold, and reads ``steps``, the steps that an earlier run finished. The header is written with
    the first step, so a run that finishes none leaves nothing behind.

    Each line ends with a check chained over all lines before it, and counts only if it is byte for byte what was
    written, so an edited, lost or reordered line is noticed. A last line that was cut off while it was written is
    dropped, and the run goes on from the line before.

    Entering raises ``ValueError`` where the file is of another run, of a later format, or was altered; ``RuntimeError``
    where another run still writes it after ``LOCK_SECONDS``; ``OSError`` where it cannot be read or its lock not be
    made. ``path`` None keeps nothing.
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
            raise RuntimeError(
                f"another run is writing {self.path}: wait for it, stop it, or name another journal."
            ) from None
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
            with suppress(OSError):  # while it is held: whoever waits for it then makes another
                os.unlink(self._lock.lock_file)
            self._lock.release()

    def _read(self) -> list[dict[str, Any]]:
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
                raise ValueError(f"{self.path} is no journal: name another file.")
            log.warning("%s ends in a line that was cut off; the run goes on from the line before.", self.path)
            os.truncate(self.path, len(raw) - len(torn))
        return lines

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if differing:
            raise ValueError(
                f"{self.path} is the journal of another run ({', '.join(differing)} differ): delete it, or name another."
            )

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
                    error.errno, f"{error.strerror}; mend that, and the same call goes on from here", str(self.path)
                ) from None


def _encoded(line: Mapping[str, Any], check: str) -> bytes:
    return json.dumps({**line, "check": check}).encode()


def _chained(before: str, line: Mapping[str, Any]) -> str:
    return hashlib.sha256((before + json.dumps(line)).encode()).hexdigest()[:16]


def hash_of_model(model: nn.Module) -> str:
    """SHA-256, 16 digits, over the names, types and values of all parameters and buffers."""
    return hash_of_tensors(model.state_dict().items())


# What a configuration says of where and by what it was saved, of what a loss made of it, and of how attention is
# computed; the precision stands in the header by itself.
OF_NO_ACCOUNT = (
    *("_name_or_path", "architectures", "transformers_version", "dtype", "problem_type"),
    *("_attn_implementation", "attn_implementation"),
)


def hash_of_config(config: Any) -> str:
    """SHA-256, 16 digits, over what the configuration says of the model: weights alone do not tell an activation or
    the number of heads."""
    content = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    told = {name: value for name, value in content.items() if name not in OF_NO_ACCOUNT}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def hash_of_tensors(items: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256, 16 digits, over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in items:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
