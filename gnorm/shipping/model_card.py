"""The model card of a pruned model: how it was made, how good it is, its heads, its size and speed."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
import torch
from huggingface_hub import ModelCardData

from ..engine.model.problems import problem_of
from ..engine.tally import hits
from ..heads import head_mask_of
from ..metrics import Metric
from ..storage.modeling import auto_map, plain_class
from ..trajectory import interval, wilson
from .readers import READERS

SAMPLES = 1000  # of a bootstrap


def card(
    *,
    model: Any,
    metric: Metric,
    text_values: dict[str, np.ndarray],
    labels: np.ndarray,
    template: str = "card.md.j2",
    **about: Any,
) -> str:
    """The text of a model card, README.md: Markdown after a YAML header that model hubs read.

    template: "summary.txt.j2" says it in four lines, for a terminal.
    text_values: the metric's ``text_values`` of the test texts, by "before", "after" and, where it was trained further,
    "recovered", for the same texts; labels: theirs. The change is that from before to the last of them.
    Shares of hits have 95 % Wilson intervals, other metrics and differences 95 % bootstrap intervals over texts.
    about: the other variables of the template.
    """
    before, after = text_values["before"], text_values.get("recovered", text_values["after"])

    def change(texts: np.ndarray) -> float:
        return metric.value(after[texts], labels[texts]) - metric.value(before[texts], labels[texts])

    if metric.per_text is None:
        low, high = _bootstrapped(change, len(labels))
    else:  # the mean of the texts' own changes, of which many samples are quickly computed
        changes = metric.per_text(after, labels) - metric.per_text(before, labels)
        low, high = _bootstrapped(lambda texts: float(changes[texts].mean()), len(labels), 10 * SAMPLES)
    reader = READERS[problem_of(model).name]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gnorm.shipping", ""), undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(
        head=ModelCardData(
            library_name="transformers",
            pipeline_tag=reader.tag,
            tags=["attention-head-pruning", "gnorm"],
        ).to_yaml(),
        auto=next(iter(auto_map(plain_class(model), model.config)), ""),
        metric=metric,
        hits=metric.text_values is hits,
        usage=reader.usage,
        values={name: _with_interval(metric, of_model, labels) for name, of_model in text_values.items()},
        change={"mean": change(np.arange(len(labels))), "low": low, "high": high},
        kept=head_mask_of(model).sum(1).tolist(),
        neurons=getattr(model.config, "feed_forward_sizes", None),
        device=model.device.type,
        threads=torch.get_num_threads(),
        date=datetime.date.today().isoformat(),
        **about,
    )


def _with_interval(metric: Metric, values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metric of the texts and its interval: Wilson's where it is a share of hits."""
    if metric.text_values is hits:
        low, high = wilson(int(values.sum()), len(values))
    else:
        low, high = _bootstrapped(lambda texts: metric.value(values[texts], labels[texts]), len(labels))
    return {"value": metric.value(values, labels), "low": low, "high": high}


def _bootstrapped(
    measure: Callable[[np.ndarray], float], texts: int, samples: int | None = None
) -> tuple[float, float]:
    """The 95 % percentile interval of a function of the numbers of texts (text,), drawn with replacement."""
    generator = np.random.default_rng(0)
    drawn = (generator.integers(texts, size=texts) for _ in range(samples or SAMPLES))
    low, high = interval(np.array([measure(numbers) for numbers in drawn]))
    return float(low), float(high)
