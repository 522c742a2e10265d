"""A journal of a pruning run: one JSON line a finished step, durable, and bound to the run that wrote it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = 1
log = logging.getLogger(__name__)


class Journal:
    """Lines of JSON in ``path``: a header that says which run this is, then one line for every finished step.

    Each line ends with a check chained over all lines before it, so an edited, lost or reordered line is noticed. A
    last line that was cut off while it was written is dropped, and the run goes on from the line before.

    Raises ``ValueError`` where the file is of another run, of a later format, or was altered. ``path`` None keeps
    nothing.
    """

    def __init__(self, path: str | os.PathLike[str] | None, header: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.steps: list[dict[str, Any]] = []
        self._check = ""
        if self.path is None:
            return
        header = {"journal": FORMAT, **header}
        lines = self._read()
        if lines:
            self._compare(lines[0], json.loads(json.dumps(header)))
            self.steps = lines[1:]
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(header)

    def _read(self) -> list[dict[str, Any]]:
        assert self.path is not None
        raw = self.path.read_bytes() if self.path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            log.warning("%s ends in a line that was cut off; the run goes on from the line before.", self.path)
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        lines = []
        for number, text in enumerate(whole.decode("utf-8", "replace").splitlines(), start=1):
            try:
                line = json.loads(text)
                check = line.pop("check")
            except (ValueError, AttributeError, KeyError):
                raise ValueError(f"line {number} of {self.path} is not a journal line: delete the file.") from None
            if number == 1 and line.get("journal") != FORMAT:
                raise ValueError(
                    f"{self.path} is of journal format {line.get('journal')}, this version reads {FORMAT}: "
                    "update gnorm, or delete the file."
                )
            self._check = _chained(self._check, line)
            if check != self._check:
                raise ValueError(f"line {number} of {self.path} was altered after it was written: delete the file.")
            lines.append(line)
        return lines

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if differing:
            raise ValueError(
                f"{self.path} is the journal of another run ({', '.join(differing)} differ): delete it, or name another."
            )

    def append(self, step: Mapping[str, Any]) -> None:
        """Write one finished step and return when it is on the disk."""
        if self.path is not None:
            self._write(step)

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self.path is not None
        self._check = _chained(self._check, line)
        with self.path.open("ab") as file:
            file.write(json.dumps({**line, "check": self._check}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _chained(before: str, line: Mapping[str, Any]) -> str:
    return hashlib.sha256((before + json.dumps(line)).encode()).hexdigest()[:16]


def hash_of_model(model: nn.Module) -> str:
    """SHA-256, 16 digits, over the names, types and values of all parameters and buffers."""
    return hash_of_tensors(model.state_dict().items())


def hash_of_tensors(items: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256, 16 digits, over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in items:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
