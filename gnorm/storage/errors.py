"""Errors of the libraries that read and write checkpoints, and how messages quote them."""

from __future__ import annotations

from pickle import PickleError

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

# What transformers, torch and json raise where a checkpoint or a configuration cannot be read or written.
LIBRARY_ERRORS = (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError,
                  PickleError, RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError)  # fmt: skip


def in_short(error: BaseException) -> str:
    """The message of an error on one line, cut to 240 characters; the name of its type where it has no message."""
    return " ".join(str(error).split())[:240].rstrip(".") or type(error).__name__
