"""Controls: the answer itself, and scores of what has been made meaningless."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..engine.forward.packing import NO_CACHE, LayerInputCache, not_finite
from ..engine.forwarding import Forward, layer_input_caches, passes, with_caches
from ..engine.model.blocks import table_of
from ..engine.model.masking import masking
from ..engine.model.problems import NOT_COUNTED
from ..engine.model.sizes import Batch
from ..engine.model.state import copy_of
from ..engine.texts.batches import Prepared, prepare
from ..engine.texts.micro_batches import labels_of
from ..engine.texts.ranks import in_order
from ..engine.texts.streams import batch_of_texts, remade
from ..scoring import Criterion
from .of_loss import loss_terms


def oracle(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Leave-one-out: (layer, head) the number of texts that are wrong once this head is gone as well.

    A fraction below one is added, c / (1 + c) of the loss c, so that of two heads with as many wrong texts the one goes
    whose loss is smaller; that fraction is all there is where texts are not right or wrong as a whole. Texts labelled
    -100 count for nothing. It takes one forward pass a head, from that head's layer upwards.

    Raises ``ValueError`` for texts without labels, where logits are not finite, and as ``prepare`` and
    ``attention_blocks`` do.
    """
    prepared = prepare(batches, model)
    subject = prepared.subject
    blocks, problem, texts = subject.blocks, subject.problem, int(loss_terms(prepared, "the oracle").sum())

    def costs(
        forward: Forward, caches: Sequence[LayerInputCache], observed: Prepared
    ) -> Iterator[tuple[int, tuple[int, float]]]:
        for micro, cache in with_caches(prepared.mine, caches):
            logits = forward(micro, cache)[0]
            labels = labels_of(micro, logits)
            observed.notify(logits, micro)
            right_or_wrong = problem.labels == ("text",)
            wrong = int((logits.argmax(-1) != labels)[labels != NOT_COUNTED].sum()) if right_or_wrong else 0
            yield micro.number, (wrong, problem.loss_sum(logits.double(), labels).item())

    def cost(forward: Forward, caches: Sequence[LayerInputCache], observed: Prepared) -> float:
        wrong, loss = 0, 0.0
        for wrong_texts, part in in_order(prepared.group, costs(forward, caches, observed)):
            wrong, loss = wrong + wrong_texts, loss + part
        if not math.isfinite(loss):
            raise ValueError(not_finite("a text"))
        mean = loss / texts
        return wrong + mean / (1 + mean)

    caches = layer_input_caches(prepared.mine)
    scores = []
    with passes(prepared) as forward:
        cost(forward, caches, prepared)  # the intact model: fills the caches, and shows its logits
        for layer, block in enumerate(blocks):
            below = [
                LayerInputCache(c.layers[: c.layers.index(max(found)) + 1], found)
                if (found := {at: state for at, state in c.states.items() if at <= layer})
                else NO_CACHE
                for c in caches
            ]
            of_block = torch.zeros(len(block.kept), dtype=torch.float64)
            for i, head in enumerate(block.kept):
                without = subject.mask.clone()
                without[layer, head] = False
                with masking(subject.model, blocks, without):
                    of_block[i] = cost(forward, below, prepared.with_observer(None))
            scores.append(of_block)
    return table_of(blocks, scores)


def shuffled_weights(
    model: nn.Module, batches: Iterable[Batch] | Prepared, *, criterion: Criterion, generator: torch.Generator
) -> Tensor:
    """``criterion`` of the same model with the entries of every weight and bias in random order: (layer, head).

    A check of a criterion: what it finds there it does not owe to what the model has learned. Raises as ``criterion``
    does.
    """
    untaught = copy_of(model)
    with torch.no_grad():
        for parameter in untaught.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return criterion(untaught, prepare(batches, model).with_observer(None))


def shuffled_labels(
    model: nn.Module, batches: Iterable[Batch] | Prepared, *, criterion: Criterion, generator: torch.Generator
) -> Tensor:
    """``criterion`` with the labels of all texts shuffled: (layer, head). A check like
    ``shuffled_weights``, for criteria that look at labels. Raises as ``criterion`` does, for texts without labels, and
    for labels of tokens, which do not fit another text.
    """
    prepared = prepare(batches, model)
    problem = prepared.subject.problem
    if not problem.by_text:
        raise ValueError(f"labels cannot be shuffled where a model gives {problem.gives}: choose another method.")
    prepared.check_labels("shuffled labels")
    labels = torch.cat([batch["labels"] for batch in prepared.batches])
    dealt = labels[torch.randperm(len(labels), generator=generator).to(labels.device)]
    shares = dealt.split(batch_of_texts(prepared.batches).bincount().tolist())

    def relabelled(given: Iterable[Batch]) -> Iterator[Batch]:
        return ({**batch, "labels": share} for batch, share in zip(given, shares, strict=True))

    return criterion(model, prepare(remade(prepared.batches, relabelled), model).over(prepared.group))
