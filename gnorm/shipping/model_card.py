"""The model card of a pruned model: how it was made, its accuracy, its heads, its size and speed."""

from __future__ import annotations

import datetime
from typing import Any

import jinja2
import numpy as np
import scipy
import torch
from huggingface_hub import ModelCardData

from ..heads import head_mask_of
from ..storage.modeling import auto_map, plain_class
from ..trajectory import wilson


def card(*, model: Any, correct: dict[str, np.ndarray], **about: Any) -> str:
    """The text of a model card, README.md: Markdown after a YAML header that model hubs read.

    correct: which test texts are classified correctly, (text,) bool, by "before" and "after", for the same texts.
    Accuracies have 95 % Wilson intervals, their difference a 95 % bootstrap interval over texts. about: the other
    variables of ``card.md.j2``.
    """
    change = correct["after"].astype(float) - correct["before"]
    low, high = scipy.stats.bootstrap((change,), np.mean, method="percentile", rng=0).confidence_interval
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gnorm.shipping", ""), undefined=jinja2.StrictUndefined
    )
    return environment.get_template("card.md.j2").render(
        head=ModelCardData(
            library_name="transformers",
            pipeline_tag="text-classification",
            tags=["attention-head-pruning", "gnorm"],
        ).to_yaml(),
        accuracy={name: _share(hits) for name, hits in correct.items()},
        change={"mean": change.mean(), "low": low, "high": high},
        auto=next(iter(auto_map(plain_class(model), model.config)), ""),
        kept=head_mask_of(model).sum(1).tolist(),
        device=model.device.type,
        threads=torch.get_num_threads(),
        date=datetime.date.today().isoformat(),
        **about,
    )


def _share(hits: np.ndarray) -> dict[str, float]:
    """The share of True in (text,) bool and its interval, as fractions."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"share": float(hits.mean()), "low": low, "high": high}
