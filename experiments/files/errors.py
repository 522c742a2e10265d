"""Exceptions of the pipeline; run_all.py alone turns them into messages and exit codes."""

from __future__ import annotations

from gnorm.storage.errors import RunError

__all__ = ["NotebookError", "RunError", "UsageError"]


class UsageError(Exception):
    """Wrong usage, or an asset is missing: the message says how to fix it. Nothing was pruned."""


class NotebookError(RunError):
    """A notebook failed; the message names the cell, its error and the executed copy."""
