"""Forward passes that fail: an error of the model becomes a sentence that names the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)  # no text is to blame


class PassError(ValueError):
    """A model does not take some texts. text: the number of the one to blame; None where it is not one alone."""

    def __init__(self, message: str, text: int | None = None) -> None:
        super().__init__(message)
        self.text = text


@contextmanager
def naming_texts(
    model: nn.Module, inputs: Mapping[str, Tensor], numbers: Tensor | None = None, again: bool = True
) -> Iterator[None]:
    """Whatever the model raises in a ``with`` block that passes ``inputs`` through it becomes a ``PassError``.

    numbers: (text,) of the texts; 0, 1, 2 ... if None. again: whether the texts may go through ``model`` once more, by
    themselves, to see which is to blame. Errors of this package and those of a lack of memory stay what they are.
    """
    try:
        yield
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        if is_ours(error):
            raise
        raise _told(model, inputs, numbers, error, again) from error


def is_ours(error: BaseException) -> bool:
    """True if the package itself raised ``error``."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    root = __name__.partition(".")[0]
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] == root


def _told(
    model: nn.Module, inputs: Mapping[str, Tensor], given: Tensor | None, error: Exception, again: bool
) -> PassError:
    """The error that says which texts the model does not take."""
    count = len(next(iter(inputs.values())))
    numbers = list(range(count)) if given is None else given.tolist()
    kind, pad_token = type(model).__name__, getattr(model.config, "pad_token_id", None)
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('.')}"
    correct = "correct the text, or leave it out."

    def fails(*texts: int) -> bool:
        try:
            with torch.no_grad():
                model(**{name: tensor[list(texts)] for name, tensor in inputs.items()})
        except OUT_OF_MEMORY:
            raise
        except Exception:  # noqa: BLE001 - whatever a model raises
            return True
        return False

    if count == 1:
        return PassError(f"{kind} does not take text {numbers[0]} ({why}): {correct}", numbers[0])
    alone = [i for i in range(count) if fails(i)] if again else []
    if 0 < len(alone) < count:
        return PassError(f"{kind} does not take text {numbers[alone[0]]} ({why}): {correct}", numbers[alone[0]])
    beside = [i for i in range(1, count) if fails(0, i)] if again and not alone else []
    none_beside = len(beside) == count - 1 and (count == 2 or fails(1, 2))
    if none_beside and pad_token is None:
        return PassError(
            f"{kind} takes one text at a time ({why}): set config.pad_token_id to the number of the tokenizer's "
            "padding token."
        )
    if beside and not none_beside:
        odd = beside[0] if len(beside) < count - 1 else 0
        return PassError(f"{kind} does not take text {numbers[odd]} beside others ({why}): {correct}", numbers[odd])
    several = "text " + ", ".join(map(str, numbers[:5])) + " and others" * (count > 5)
    return PassError(f"{kind} does not take {several} ({why}): see what inputs the model is made for.")
