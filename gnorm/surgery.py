"""Removing heads for good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .engine.model.blocks import config_of
from .engine.model.removal import remove
from .engine.model.subject import Subject
from .engine.trials.trial import try_out
from .heads import head_mask_of


@torch.inference_mode(False)  # the new parameters can be trained even if the caller is in inference mode
def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes. Indices are those of the intact model. A head that was removed before
    stays removed whatever the mask says. Layers may keep different numbers of heads, or none. The attributes of the
    attention modules that count heads follow. A layer without heads has no projections any more: what its attention
    adds is the bias of the output projection, or nothing; that bias is a parameter of the module that held the
    projection, such as ``output.dense_bias``. The layer skips attention, where its family's row allows that. The mask
    of kept heads is written to ``model.config.head_mask``, which ``head_mask_of`` reads and ``save_pretrained`` saves.
    A configuration that other models share is copied first. ``alignment_heads`` in a generation configuration, which
    Whisper takes timestamps of words from, then lists those that are left, as the smaller model numbers them; if none
    is left, it goes too, and a line of the log says so.

    The sliced projections have new parameters. An optimizer made before holds the old ones and does not train the new
    ones, so make optimizers (and a ``Trainer``) afterwards. A compiled model has to be compiled again.

    Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1, for a model under
    ``gnorm.masked``, where ``alignment_heads`` names a head that the model does not have, and as ``attention_blocks``
    does.
    """
    config_of(model)  # refuses what is not a model
    try_out(model, removal=True)
    remove(Subject(model), mask)


def unit_mask_of(model: nn.Module) -> Tensor:
    """The mask (layer, head + neuron), bool: row i holds the heads of attention block i, true for those that are left,
    and behind them true for each neuron that feed-forward block i has.

    A model whose row was registered, or with classes of its own, is tried first, as for heads. Raises ``ValueError``
    where feed-forward blocks hold experts or have no row in ``FEED_FORWARDS``, and as ``attention_blocks`` does.
    """
    config_of(model)
    try_out(model, neurons=True)
    return Subject(model).unit_mask


@torch.inference_mode(False)
def remove_units(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads and feed-forward neurons from ``model``, in place, with their weights and biases.

    mask: (layer, head + neuron) as ``unit_mask_of``, 1 keeps and 0 removes; or (layer, head), as of ``remove_heads``.
    Neurons are numbered as they lie in the model now. Where any went, ``model.config.feed_forward_sizes`` lists how
    many each block has left. A block without neurons adds the bias of the projection out, or nothing.

    Raises as ``remove_heads`` and ``unit_mask_of`` do.
    """
    if tuple(torch.as_tensor(mask).shape) == tuple(head_mask_of(model).shape):
        remove_heads(model, mask)
        return
    try_out(model, removal=True)
    try_out(model, removal=True, neurons=True)
    remove(Subject(model), mask, neurons=True)
