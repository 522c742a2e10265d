"""Batches that are read anew for every pass, in place of a list of them: as many texts as a disk holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..model.sizes import Batch, size_of, tables_of
from .checks import checked, usable, with_decoder

WINDOW_TEXTS = 4096  # texts that are sorted by length and packed together, at least


def is_stream(batches: Any) -> bool:
    """True if batches are read anew for every pass: they can be iterated over again, and are not a sequence.

    An iterator, such as a generator, gives its batches once: it is made a list. ``TypeError`` for a data set whose
    texts are in no batches.
    """
    if hasattr(batches, "column_names"):
        raise TypeError(
            f"this {type(batches).__name__} holds texts, not batches: give gnorm.TextSet(data_set, batch_size)."
        )
    return not isinstance(batches, Sequence) and isinstance(batches, Iterable) and not isinstance(batches, Iterator)


class Stream:
    """Checked batches, read from ``source`` anew by every iteration; in the first one all are checked.

    alike: whether ``test`` holds for every batch. Raises as ``checked`` does, and ``ValueError`` where a later
    iteration gives other batches.
    """

    def __init__(self, source: Iterable[Any], model: Any, test: Callable[[Batch], bool]) -> None:
        self._source, self._sums, self.alike = source, list[float](), True
        self.sizes: list[int] = []  # texts of each batch
        self._complete = partial(with_decoder, tables=tables_of(model), model=model)
        for batch in checked(source, model):
            self.alike = self.alike and test(batch)
            self.sizes.append(size_of(batch))
            self._sums.append(_sum(batch))
        self.num_texts = sum(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        for number, batch in enumerate(self._source, start=1):
            one = self._complete(usable(batch), number - 1)
            if number > len(self.sizes) or _sum(one) != self._sums[number - 1]:
                raise ValueError(
                    f"batch {number - 1} differs from pass to pass: give batches that nothing shuffles, masks or draws "
                    "anew."
                )
            yield one
        if number < len(self.sizes):
            raise ValueError(f"a second pass gives {number} batches, the first gave {len(self.sizes)}: give a list.")

    def windows(self) -> Iterator[tuple[int, int, list[Batch]]]:
        """Consecutive batches of ``WINDOW_TEXTS`` texts or more: the numbers of the first batch and text, the batches.

        The last window may be smaller.
        """
        window, batch, text, texts = list[Batch](), 0, 0, 0
        for one in self:
            window.append(one)
            texts += size_of(one)
            if texts >= WINDOW_TEXTS:
                yield batch, text, window
                window, batch, text, texts = [], batch + len(window), text + texts, 0
        if window:
            yield batch, text, window


def _sum(batch: Batch) -> float:
    """Of all numbers of a batch, NaN counted as 0: it tells batches apart, nearly always."""
    return sum(float(tensor.nansum()) for tensor in batch.values())


class _Remade:
    """Batches transformed by ``make``, re-created on each iteration."""

    def __init__(self, batches: Iterable[Batch], make: Callable[[Iterable[Batch]], Iterator[Batch]]) -> None:
        self._batches, self._make = batches, make

    def __iter__(self) -> Iterator[Batch]:
        return self._make(self._batches)


def remade(batches: Iterable[Batch], make: Callable[[Iterable[Batch]], Iterator[Batch]]) -> Iterable[Batch]:
    """The batches that ``make`` gives of ``batches``: a list of a sequence, a stream of a stream."""
    return list(make(batches)) if isinstance(batches, Sequence) else _Remade(batches, make)


def batch_of_texts(batches: Iterable[Batch]) -> Tensor:
    """(text,) int64: the number of the batch that each text is in."""
    sizes = batches.sizes if isinstance(batches, Stream) else [size_of(batch) for batch in batches]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
