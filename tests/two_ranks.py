"""What test_ranks.py starts by torchrun: runs over all ranks, their results saved by rank.

The same functions make what one process gives.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import FAMILIES, ragged_batches, tiny_model

import gnorm
import gnorm.shipping
from gnorm.engine.forwarding import passes
from gnorm.engine.model.blocks import table_of
from gnorm.engine.texts import streams

SCORING, EVALUATION = ragged_batches(5), ragged_batches(4, seed=9)
ON_ALL_FAMILIES = ("greedy_gnorm", "attention_entropy")
OF_EVERY_KIND = (
    "activation_energy",
    "head_importance",
    "output_saliency",
    "hies",
    "flap",
    "oracle",
    "importance_shuffled_labels",
    "gnorm_cross_entropy",
    "gnorm_by_text",
    "whole",
)


def outcome(run):
    return run.table, run.text_values


def pruned(family="bert", method="greedy_gnorm", evaluation=EVALUATION, scoring=SCORING, **options):
    """A run on micro-batches of few tokens, so that there are several."""
    model = tiny_model(family)
    scoring = gnorm.prepare(scoring, model, max_tokens=40)
    if evaluation is not None:
        evaluation = gnorm.prepare(evaluation, model, together=True, max_tokens=40)
    return gnorm.prune(model, scoring, evaluation, method, progress=False, **options)


def whole_criterion(model, batches):
    """The mean logit by class, dealt to heads: it knows nothing of ranks, and shows its logits."""
    prepared, sums = gnorm.prepare(batches, model), 0
    with passes(prepared) as forward:
        for micro in prepared:
            logits = forward(micro)[0]
            sums = sums + logits.double().sum(0)
            prepared.notify(logits, micro)
    blocks = gnorm.attention_blocks(model)
    return table_of(blocks, [sums.sum() * torch.tensor([h + 1.0 for h in block.kept]).double() for block in blocks])


class Again:
    """Batches that are read anew for every pass."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


calls = []


def breaks_once(model, batches):
    """G-norm; the last rank fails in the third scoring of the process, and in no other."""
    calls.append(model)
    if len(calls) == 3 and int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "0")) - 1:
        raise KeyError("a fault of this rank")
    return gnorm.gnorm_scores(model, batches)


def runs(folder, **options):
    """By name, what runs give that differ by family, method, texts and metric."""
    gnorm.MORE_METHODS["whole"] = gnorm.Method("Whole", whole_criterion, rescore_every=1)
    gnorm.MORE_METHODS["breaks_once"] = gnorm.Method("Breaks once", breaks_once, rescore_every=1)
    found, streams.WINDOW_TEXTS = {}, 9
    for family in FAMILIES:
        for method in ON_ALL_FAMILIES:
            steps = None if family == "bert" else 2  # to the last head, or not
            found[f"{family} {method}"] = outcome(pruned(family, method, steps=steps, **options))
    for method in OF_EVERY_KIND:
        found[f"steps of {method}"] = outcome(pruned(method=method, steps=2, **options))
    found["the same texts"] = outcome(pruned(evaluation=None, steps=4, **options))
    found["whole, the same texts"] = outcome(pruned(method="whole", evaluation=None, steps=4, **options))
    found["streams"] = outcome(pruned(scoring=Again(SCORING), evaluation=Again(EVALUATION), steps=3, **options))
    found["one batch"] = outcome(pruned(scoring=SCORING[:1], evaluation=SCORING[:1], steps=2, **options))
    found["one text"] = outcome(
        pruned(scoring=[{name: t[:1] for name, t in SCORING[0].items()}], evaluation=None, steps=2, **options)
    )
    model = tiny_model("bert")
    scoring, evaluation = (gnorm.prepare(each, model, max_tokens=40) for each in (SCORING, EVALUATION))
    run = gnorm.shipping.prune_units(model, scoring, evaluation, steps=3, progress=False, **options)
    found["heads and neurons, logarithms as of gnorm"] = outcome(run)
    found["f1"] = outcome(pruned(metric="f1_macro", steps=2, **options))
    return found


def main(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    options = {"process_group": True}
    found = runs(folder, **options)
    journal = folder / "run.jsonl"
    for name, settings in {
        "fault": {"method": "breaks_once", "journal": journal},
        "other seeds": {"method": "random", "seed": rank},
        "other texts": {"scoring": SCORING[rank:]},
        "unknown method on one": {"method": "random" if rank else "rondom"},
    }.items():
        try:
            pruned(**settings, **options)
        except Exception as error:  # noqa: BLE001 - whatever it is
            found[name] = (type(error).__name__, str(error))
    found["lines of the journal"] = len(journal.read_text().splitlines())
    found["after the fault"] = outcome(pruned(method="breaks_once", journal=journal, **options))
    prepared = gnorm.prepare(SCORING, model := tiny_model("bert"), max_tokens=40).over(dist.group.WORLD)
    found["micro-batches"] = [micro.number for micro in prepared.mine], len(prepared)
    found["batches"] = sorted({s.batch for micro in prepared.mine for s in micro.batch_slices})
    assert prepared.over(dist.group.WORLD) is prepared
    assert torch.equal(gnorm.gnorm_scores(model, prepared), gnorm.gnorm_scores(model, prepared.over(None)))
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
