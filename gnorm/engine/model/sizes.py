"""Sizes of a model and of its batches: embedding tables, the longest text, the axes of logits and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .problems import Problem, num_classes, problem_of

Batch = Mapping[str, Tensor]


def size_of(batch: Batch) -> int:
    """The number of texts of a batch."""
    return len(next(iter(batch.values())))


def num_texts(batches: Iterable[Batch]) -> int:
    """The number of texts of the batches."""
    return sum(map(size_of, batches))


def parameter_of(model: nn.Module) -> Tensor:
    """The first parameter of ``model``, whose device and dtype are the model's.

    Raises ``ValueError`` for a model without parameters, on several devices, on the meta device, or made within
    torch.inference_mode.
    """
    devices = sorted({parameter.device for parameter in model.parameters()}, key=str)
    if not devices:
        raise ValueError(f"{type(model).__name__} has no parameters: give the model itself, not a wrapper of it.")
    if len(devices) > 1:
        raise ValueError(
            f"the model lies on {' and '.join(map(str, devices))}: bring it to one device with model.to()."
        )
    if devices[0].type == "meta":
        raise ValueError("the model is on the meta device, which holds no weights: load them first.")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model was made within torch.inference_mode(), so nothing can be differentiated through it: load it "
            "outside, or use copy.deepcopy(model), made outside."
        )
    return next(model.parameters())


# Inputs with an entry for each token, on their second dimension.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


PER_TEXT = ("pixel_values",)  # inputs with an entry for each text and none for a token


# Inputs that hold row numbers of an embedding table: what an error calls them, and how to correct them.
TABLES = {
    "input_ids": ("token ids", "use the tokenizer that belongs to it"),
    "token_type_ids": ("token type ids", "leave token_type_ids out, or use the tokenizer that belongs to it"),
    "position_ids": ("position ids", "leave position_ids out, and the model counts by itself"),
}


POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")  # what models call their tables of positions


def longest_text(model: Any) -> int | None:
    """The most tokens of a text that the model has position embeddings for; None where it has no table of them.

    Tables with a padding row (RoBERTa's) number positions from the row after it, those with an offset (BART's) from
    there.
    """
    return _longest(_embeddings(model))


def _longest(tables: Mapping[str, Sequence[nn.Embedding]]) -> int | None:
    of_positions = [table for name in POSITION_TABLES for table in tables.get(name, ())]
    before = [getattr(t, "offset", 0) if t.padding_idx is None else t.padding_idx + 1 for t in of_positions]
    return min((table.num_embeddings - rows for table, rows in zip(of_positions, before, strict=True)), default=None)


def _embeddings(model: nn.Module, without: nn.Module | None = None) -> dict[str, list[nn.Embedding]]:
    """The embedding tables of the model, by the last part of their modules' names; those of one module left out."""
    found: dict[str, list[nn.Embedding]] = {}
    for name, module in model.named_modules(memo=set() if without is None else set(without.modules())):
        if isinstance(module, nn.Embedding):
            found.setdefault(name.rpartition(".")[2], []).append(module)
    return found


def tables_of(model: Any) -> dict[str, int | None]:
    """By input name, how many rows its embedding table has; under "longest", the most tokens of a text.

    Where the decoder has inputs of its own, its tables are under names that begin with "decoder_". None where the model
    has no such table.
    """
    decoder = model.get_decoder() if (prefix := problem_of(model).input_prefix) else None
    of_decoder = {} if decoder is None else {f"{prefix}{name}": rows for name, rows in _tables(decoder).items()}
    return {**_tables(model, decoder), **of_decoder}


def _tables(model: Any, without: nn.Module | None = None) -> dict[str, int | None]:
    """``tables_of`` a model or a part of it; the tables that only ``without`` has are left out."""
    try:
        words = getattr(getattr(model, "get_input_embeddings", lambda: None)(), "num_embeddings", None)
    except NotImplementedError:  # of a model that takes no words, such as Wav2Vec2's
        words = None
    tables = _embeddings(model, without)
    sizes = {
        name: min(
            (table.num_embeddings for table in tables.get(f"{name.removesuffix('_ids')}_embeddings", ())), default=None
        )
        for name in ("token_type_ids", "position_ids")
    }
    return {"input_ids": words, **sizes, "longest": _longest(tables)}


def _width(batch: Batch, prefix: str = "") -> int | None:
    """The width of a batch in tokens; None where nothing in it counts tokens. prefix: of the problem."""
    names = [f"{prefix}{name}" for name in PER_TOKEN]
    ids, embedded = next((batch[name] for name in names[:4] if name in batch), None), batch.get(names[4])
    return ids.shape[-1] if ids is not None else None if embedded is None else embedded.shape[-2]


def sizes_of(axes: Sequence[str], batch: Batch, problem: Problem, model: Any) -> list[int | None]:
    """The lengths of the axes of logits or labels for a batch; None where that is not known."""
    known = {
        "text": size_of(batch),
        "choice": next((batch[name].shape[1] for name in PER_TOKEN if name in batch), None),
        "token": _width(batch, problem.input_prefix),
        "class": num_classes(model),
        "boundary": 2,
    }
    return [known[axis] for axis in axes]


def fits(tensor: Tensor, sizes: Sequence[int | None]) -> bool:
    """True if a tensor has axes of these sizes, None for any."""
    return len(sizes) == tensor.dim() and all(a in (None, b) for a, b in zip(sizes, tensor.shape, strict=True))
