"""What the pipeline raises; run_all.py alone turns it into messages and exit codes."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong usage, or an asset is missing: the message says how to mend it. Nothing was pruned."""


class RunError(Exception):
    """A run could not go on; what it finished is kept. The message says what went wrong."""


class NotebookError(RunError):
    """A notebook failed; the message names the cell, its error and the executed copy."""
