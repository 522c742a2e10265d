"""Errors: of the libraries that read and write checkpoints, and of runs that were stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import PickleError
from typing import NoReturn

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..engine.model.errors import in_short

__all__ = ["LIBRARY_ERRORS", "RunError", "Terminated", "code_of", "in_short", "terminable"]

# What transformers, torch and json raise where a checkpoint or a configuration cannot be read or written.
LIBRARY_ERRORS = (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError,
                  PickleError, RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError)  # fmt: skip


class RunError(Exception):
    """A run could not go on; what it finished is kept. The message says what went wrong."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came. A KeyboardInterrupt, because asyncio swallows others that a signal raises in a callback."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block, SIGTERM raises ``Terminated``."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def code_of(stopped: KeyboardInterrupt) -> int:
    """The exit code of a process that was stopped by SIGTERM or SIGINT."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)
