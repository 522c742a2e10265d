"""Feed-forward blocks, neuron by neuron: where their projections lie, and what follows when neurons go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from .blocks import _named, check_cuttable, names_of
from .families import FAMILIES
from .projections import Projection, Units, check_projection, rows_of, size_of_module

# The projections into a feed-forward block, and the one out of it, as their names end; the family's row says where
# (``Family.feed_forward``). The first row that fits all blocks of a model is taken. A neuron has a row of each
# projection in; two, its gate's and its own, of one of twice the size, which holds all gates first or last.
FEED_FORWARDS = (
    (("intermediate.dense",), "output.dense"),
    (("intermediate_dense",), "output_dense"),
    (("ffn",), "ffn_output"),
    (("lin1",), "lin2"),
    (("fc1",), "fc2"),
    (("fc_in",), "fc_out"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("up_proj",), "down_proj"),
    (("w1", "w3"), "w2"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("Wi",), "Wo"),
)


@dataclass(frozen=True)
class FeedForward(Units):
    """The projections of one feed-forward block, of which ``kept`` counts the neurons that are left.

    owner: the module below which ``inputs`` and ``end`` name the projections in and the projection out. module: the
    one that holds the projection out.
    """

    kind: ClassVar[str] = "neurons"

    projections: tuple[Projection, ...]
    kept: tuple[int, ...]
    owner: nn.Module
    module: nn.Module
    inputs: tuple[str, ...]
    end: str


def feed_forwards_of(model: Any) -> list[FeedForward]:
    """The feed-forward blocks of ``model``, first layer first, those of a decoder after those of its encoder.

    Raises ``ValueError`` where the family's row names none, as of models with experts, where no row of
    ``FEED_FORWARDS`` fits all of them, and where a projection cannot be cut.
    """
    inputs, end, owners = _row_of(model)
    found = [_read(owner, inputs, end) for owner in owners]
    check_cuttable(found, "feed-forward ")
    return found


def patterns_of(model: Any) -> tuple[str, ...]:
    """The names of ``FeedForward.owner``, from the base model; ``*`` stands for any index."""
    _, end, _ = _row_of(model)
    return tuple(_above(name, end) for name in names_of(FAMILIES[model.config.model_type].feed_forward))


def _above(name: str, end: str) -> str:
    return name.removesuffix(end).removesuffix(".")


def ends_known(feed_forward: str | tuple[str, ...]) -> bool:
    """True if a row of ``FEED_FORWARDS`` ends as ``Family.feed_forward``, so that neurons can go."""
    return any(all(f".{name}".endswith(f".{end}") for name in names_of(feed_forward)) for _, end in FEED_FORWARDS)


def _row_of(model: Any) -> tuple[tuple[str, ...], str, list[nn.Module]]:
    """The row of ``FEED_FORWARDS`` that fits all feed-forward blocks, and the modules below which its names are."""
    names = names_of(FAMILIES[model.config.model_type].feed_forward)
    for inputs, end in FEED_FORWARDS:
        if all(f".{name}".endswith(f".{end}") for name in names):
            owners = _named(model, tuple(_above(name, end) for name in names))
            if all(_has(owner, path) for owner in owners for path in (*inputs, end)):
                return inputs, end, owners
    raise ValueError(
        f"the feed-forward blocks of model_type {model.config.model_type!r} hold experts, or projections that no row "
        'of FEED_FORWARDS names, so their neurons cannot go: prune heads alone (units=("heads",)).'
    )


def _has(owner: nn.Module, path: str) -> bool:
    """True if a projection of this name is, or was until its last neuron went, below ``owner``."""
    around, _, name = path.rpartition(".")
    try:
        return hasattr(owner.get_submodule(around), name)
    except AttributeError:
        return False


def _read(owner: nn.Module, inputs: Sequence[str], end: str) -> FeedForward:
    around, _, last = end.rpartition(".")
    module = owner.get_submodule(around)
    of_block = owner, module, tuple(inputs), end
    if last not in module._modules:  # its neurons are gone
        return FeedForward((), (), *of_block)
    for path in (*inputs, end):
        check_projection(owner.get_submodule(path), f"the feed-forward projection {path} of {type(owner).__name__}")
    output = owner.get_submodule(end)
    neurons = size_of_module(output)[1]
    found = []
    for path in inputs:
        projection = owner.get_submodule(path)
        size = size_of_module(projection)[0]
        if size not in (neurons, 2 * neurons):
            raise ValueError(
                f"{type(owner).__name__} has {size} rows in {path} and {neurons} columns in {end}: the weights "
                "contradict each other."
            )
        widths = dict.fromkeys(("gate", "input")[-(size // neurons) :], 1)
        found += [Projection(name, projection, rows) for name, rows in rows_of(neurons, widths, False).items()]
    columns = torch.arange(neurons, device="cpu")[:, None]
    found.append(Projection("output", output, columns, of_input=True))
    return FeedForward(tuple(found), tuple(range(neurons)), *of_block)
