"""Exceptions of the pipeline; run_all.py alone turns them into messages and exit codes."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong usage, or an asset is missing: the message says how to fix it. Nothing was pruned."""


class RunError(Exception):
    """A run could not go on; what it finished is kept. The message says what went wrong."""


class NotebookError(RunError):
    """A notebook failed; the message names the cell, its error and the executed copy."""
