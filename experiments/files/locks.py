"""Locks between runs, in other processes or on other machines.

A lock is a file, such as one under .run/locks, that a process holds by flock(2). The operating system gives it up when
the process dies, so a killed run blocks nobody. Lock files stay where they are: a file that is deleted while it is held
splits those who wait for it. docs/scaling.md says which file systems carry locks from machine to machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .paths import lock_file


def locked(profile: str, what: str, name: str, wait: bool = True) -> AbstractContextManager[None]:
    """Hold the lock of a thing of a profile, such as ("smoke", "jobs", "bert/greedy_gnorm"); see ``locked_file``."""
    return locked_file(lock_file(profile, what, name), name, wait)


@contextmanager
def locked_file(path: Path, name: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock of what is called ``name``, a file that is made for it.

    Where another process holds it: wait for that and say so, or without ``wait`` raise ``filelock.Timeout``. Raises
    ``OSError`` where the lock file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        print(f"waiting for another run, which is at work on {name}", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def is_held(profile: str, what: str, name: str) -> bool:
    """True if another process, on this machine or another, holds this lock; False where its file is not there."""
    path = lock_file(profile, what, name)
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
