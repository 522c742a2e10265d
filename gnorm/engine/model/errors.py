"""Messages quote the errors of other libraries."""

from __future__ import annotations


def in_short(error: BaseException) -> str:
    """The message of an error on one line, cut to 240 characters; the name of its type where it has no message."""
    return " ".join(str(error).split())[:240].rstrip(".") or type(error).__name__
