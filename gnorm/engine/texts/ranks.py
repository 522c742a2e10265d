"""One run over several processes: which micro-batches each rank takes, and how what it computes comes together.

Every rank holds the same model and the same texts, and runs the same program. Micro-batches are those of one process;
each is computed by one rank. What it gives is gathered and added in the order of one process, so every rank goes on
with the same numbers, and sums are those of one process to the precision of a pass.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch.distributed as dist
from torch import Tensor

P = ParamSpec("P")


T = TypeVar("T")


def group_of(process_group: Any) -> Any:
    """The process group that a run is divided over; None for one process. True is the group of all processes.

    Raises ``ValueError`` where torch.distributed is not set up, or this process is not in the group, ``TypeError`` for
    what is not a group.
    """
    if process_group is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "process_group needs torch.distributed: start the script by torchrun, and call "
            "torch.distributed.init_process_group() first."
        )
    group = dist.group.WORLD if process_group is True else process_group
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not in process_group: call prune on the ranks of the group alone.")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"process_group={process_group!r} is not a group of torch.distributed: give one, or True for all."
        )
    return group if dist.get_world_size(group) > 1 else None


def rank_of(group: Any) -> int:
    """The number of this process in the group; 0 without one."""
    return 0 if group is None else dist.get_rank(group)


def gather(group: Any, value: T) -> list[T]:
    """``value`` of every rank, in the order of ranks; all ranks call this, and wait for each other.

    An exception that a rank hands in as its value is raised on all.
    """
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(values, value, group=group)
    except Exception as error:
        _known_to_all(error)  # as far as can be: a rank is gone, or the group's time is over
        raise
    if errors := [one for one in values if isinstance(one, Exception)]:
        raise _known_to_all(errors[0])
    return values


def _known_to_all(error: Exception) -> Exception:
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


def raising_together(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, whose keyword ``process_group`` is made a group or None; its error on one rank is raised on all.

    The other ranks learn of an error where they next gather something, at the latest when they are done.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        group = group_of(kwargs.get("process_group"))
        kwargs["process_group"] = group
        try:
            result = function(*args, **kwargs)
            gather(group, None)
        except Exception as error:
            if not hasattr(error, "known_to_all"):
                with suppress(Exception):  # that of another rank, or this one again
                    gather(group, _portable(error))
                _known_to_all(error)
            raise
        return result

    return call


def _portable(error: Exception) -> Any:
    """The error as another process can read it: itself, where its class is found by name and made of its arguments."""
    kind = type(error)
    with suppress(Exception):
        if getattr(sys.modules[kind.__module__], kind.__qualname__) is kind:
            return copy.copy(error)
    return RuntimeError(f"{kind.__name__}: {error}")


def check_equal(group: Any, what: Mapping[str, Any]) -> None:
    """Check that ``what`` is the same on all ranks; ``ValueError`` on all if not."""
    first, *others = gather(group, dict(what))
    differing = sorted(name for name in first if any(other.get(name) != first[name] for other in others))
    if differing:
        raise _known_to_all(
            ValueError(f"the ranks were given different runs ({', '.join(differing)} differ): give all the same.")
        )


def in_order(group: Any, parts: Iterable[tuple[int, T]]) -> Iterator[T]:
    """The parts of all ranks, by their numbers; parts of the same number are of one rank, in its order.

    Without a group they go through one by one; with one they are held until all are there.
    """
    if group is None:
        yield from (part for _, part in parts)
        return
    gathered = [numbered for of_rank in gather(group, list(parts)) for numbered in of_rank]
    yield from (part for _, part in sorted(gathered, key=lambda numbered: numbered[0]))


class OrderedSums:
    """Sums of tensors that come one by one, added in the order of micro-batches whichever rank has them.

    sums: tensors of zeros, which are added to.
    """

    def __init__(self, sums: Sequence[Tensor], group: Any) -> None:
        self._sums, self._group = list(sums), group
        self._parts: list[tuple[int, Tensor]] = []  # of the micro-batch under way: number of the sum, summand
        self._finished: list[tuple[int, list[tuple[int, Tensor]]]] = []

    def add(self, i: int, summand: Tensor) -> None:
        """Add to sum number ``i``."""
        if self._group is None:
            self._sums[i] = self._sums[i] + summand  # not in place: whoever made it may be in inference mode
        else:
            self._parts.append((i, summand))

    def finish(self, micro_batch: int) -> None:
        """Mark the summands added since the last call as those of this micro-batch."""
        if self._group is None:
            return
        self._finished.append((micro_batch, self._parts))
        self._parts = []

    def result(self) -> list[Tensor]:
        """The sums over all ranks."""
        if self._group is not None:
            for parts in in_order(self._group, self._finished):
                for i, summand in parts:
                    self._sums[i] = self._sums[i] + summand
        return self._sums


class Division:
    """Deals micro-batches to ranks, one by one in their order: to the rank that has the fewest tokens so far.

    Micro-batches that share a batch go to the same rank.
    """

    def __init__(self, group: Any) -> None:
        self._rank = rank_of(group)
        self._tokens = [0] * (1 if group is None else dist.get_world_size(group))
        self._to: int | None = None  # the rank of the batch that is not at its end

    def takes(self, tokens: int, ends: bool) -> bool:
        """True if this rank gets the next micro-batch, of so many tokens. ends: no later one shares a batch with it."""
        to = self._tokens.index(min(self._tokens)) if self._to is None else self._to
        self._tokens[to] += tokens
        self._to = None if ends else to
        return to == self._rank
