"""Errors of the libraries that read and write checkpoints."""

from __future__ import annotations

from pickle import PickleError

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..engine.model.errors import in_short

__all__ = ["LIBRARY_ERRORS", "in_short"]

# What transformers, torch and json raise where a checkpoint or a configuration cannot be read or written.
LIBRARY_ERRORS = (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError,
                  PickleError, RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError)  # fmt: skip
