"""Feed-forward blocks, neuron by neuron: where their projections lie, and what follows when neurons go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
    """The projections of one feed-forward block; none where no neuron is left.

    kept: as many numbers as neurons are left. owner: the module below which ``inputs`` and ``end`` name the projections
    in and the projection out. module: the one that holds the projection out.
    """

    kind: ClassVar[str] = "neurons"

    projections: tuple[Projection, ...]
    kept: tuple[int, ...]
    owner: nn.Module
    module: nn.Module
    inputs: tuple[str, ...]
    end: str


def rows_for(feed_forward: str | tuple[str, ...]) -> list[tuple[tuple[str, ...], str, tuple[str, ...]]]:
    """The rows of ``FEED_FORWARDS`` that end as ``Family.feed_forward``, and the names of the modules above, ``*`` for
    any index."""
    names = names_of(feed_forward)
    return [
        (inputs, end, tuple(name.removesuffix(end).removesuffix(".") for name in names))
        for inputs, end in FEED_FORWARDS
        if all(f".{name}".endswith(f".{end}") for name in names)
    ]


def feed_forwards_of(model: Any) -> list[FeedForward]:
    """The feed-forward blocks of ``model``, first layer first, those of a decoder after those of its encoder.

    Raises ``ValueError`` where the family's row names none, as of models with experts, where no row of
    ``FEED_FORWARDS`` fits all of them, and where a projection cannot be cut.
    """
    for inputs, end, above in rows_for(FAMILIES[model.config.model_type].feed_forward):
        owners = _named(model, above)
        if all(_has(owner, path) for owner in owners for path in (*inputs, end)):
            found = [_read(owner, inputs, end) for owner in owners]
            check_cuttable(found, "feed-forward ")
            return found
    raise ValueError(
        f"the feed-forward blocks of model_type {model.config.model_type!r} hold experts, or lie where neither its row "
        "nor FEED_FORWARDS says, so their neurons cannot go: correct feed_forward in the row with gnorm.register, or "
        'prune heads alone (units=("heads",)).'
    )


def _has(owner: nn.Module, path: str) -> bool:
    """True if a projection of this name is below ``owner``, or was until its last neuron went."""
    around, _, name = path.rpartition(".")
    return (holder := dict(owner.named_modules()).get(around)) is not None and hasattr(holder, name)


def _read(owner: nn.Module, inputs: tuple[str, ...], end: str) -> FeedForward:
    around, _, last = end.rpartition(".")
    module = owner.get_submodule(around)
    if last not in module._modules:  # its neurons are gone
        return FeedForward((), (), owner, module, inputs, end)
    for path in (*inputs, end):
        check_projection(owner.get_submodule(path), f"the feed-forward projection {path} of {type(owner).__name__}")
    neurons, found = size_of_module(owner.get_submodule(end))[1], []
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
    columns = rows_of(neurons, {"output": 1}, False)["output"]
    found.append(Projection("output", owner.get_submodule(end), columns, of_input=True))
    return FeedForward(tuple(found), tuple(range(neurons)), owner, module, inputs, end)
