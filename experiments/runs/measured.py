"""Measurements of intact and of pruned models for notebooks: a table or maps from loaded tasks."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

import gnorm
from gnorm.engine.backward.gradients import weight_gradients
from gnorm.shipping.costs import memory_mb, num_parameters
from gnorm.trajectory import Trajectory

from ..data.tasks import Task
from ..data.training import Recipe, train

Tasks = Mapping[str, Task]  # by model


def without_attention(loaded: Tasks) -> pd.DataFrame:
    """A row a model: accuracy intact, with all heads gone, with the feed-forward blocks gone too, and by chance."""
    rows = []
    for model, task in loaded.items():
        evaluation = task.batches("evaluation")
        labels = torch.cat([batch["labels"] for batch in evaluation])
        with gnorm.masked(task.model, torch.zeros_like(gnorm.head_mask_of(task.model))):
            headless = gnorm.accuracy(task.model, evaluation)
            with gnorm.without_feed_forward(task.model):
                bare = gnorm.accuracy(task.model, evaluation)
        config = task.model.config
        rows.append(
            {
                "model": model,
                "texts": len(labels),
                "layers x heads": f"{config.num_hidden_layers} x {config.num_attention_heads}",
                "intact": task.accuracy,
                "all heads gone": headless,
                "feed-forward gone too": bare,
                "most frequent label": labels.bincount().max().item() / len(labels),
            }
        )
    return pd.DataFrame(rows)


def gradients_of(loaded: Tasks) -> dict[str, Tensor]:
    """By model, (layer, 3, rows, hidden) the summed gradients of query, key and value weights on the scoring texts."""
    return {model: weight_gradients(task.model, task.batches("scoring")) for model, task in loaded.items()}


def gradient_table(gradients: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> pd.DataFrame:
    """A row a model: whether its gradients are finite, the largest, and the range of its G-norm scores."""
    return pd.DataFrame(
        {
            "weights": [gradient.numel() for gradient in gradients.values()],
            "all finite": [bool(gradient.isfinite().all()) for gradient in gradients.values()],
            "largest": [gradient.abs().max().item() for gradient in gradients.values()],
            "heads": [score.numel() for score in scores.values()],
            "heads without gradient": [int(score.isneginf().sum()) for score in scores.values()],
            "lowest score (log)": [score.min().item() for score in scores.values()],
            "highest score (log)": [score.max().item() for score in scores.values()],
        },
        index=list(gradients),
    )


def changed_by_a_head(
    loaded: Tasks, gradients: Mapping[str, Tensor], scores: Mapping[str, Tensor], size: int
) -> dict[str, Tensor]:
    """By a title that names model and head: the change of the query gradients of the last layer, pooled to a square.

    The highest-scored head of the first layer goes. size: the side of the square, or less where the layer is smaller.
    """
    maps = {}
    for model, task in loaded.items():
        mask, head = gnorm.head_mask_of(task.model), int(scores[model][0].argmax())
        mask[0, head] = False
        with gnorm.masked(task.model, mask):
            change = weight_gradients(task.model, task.batches("scoring")) - gradients[model]
        side = min(size, change.shape[-1])
        pooled = torch.nn.functional.adaptive_avg_pool2d(change[-1, 0][None], side)[0]
        maps[f"{model}, head (0, {head}) gone"] = pooled
    return maps


def order_kept(
    loaded: Tasks, runs: Mapping[str, Trajectory], scores: Mapping[str, Tensor], points: int = 8, fewest: int = 4
) -> pd.DataFrame:
    """Rank correlation (Spearman, rho) of scores as heads go with those of the intact model.

    Columns model, pruned (share), left, rho. Heads go in the order of ``runs``, in ``points`` equal parts, as long as
    ``fewest`` are left to be scored afresh.
    """
    rows = []
    for model, task in loaded.items():
        heads = int(runs[model].start.sum())
        parts = [part for part in range(points - 1) if heads * (points - part) >= fewest * points]
        for pruned in sorted({round(heads * part / points) for part in parts}):
            mask = runs[model].mask(pruned)
            with gnorm.masked(task.model, mask):
                now = gnorm.gnorm_scores(task.model, task.batches("scoring"))
            pair = pd.DataFrame({"intact": scores[model][mask], "now": now[mask]})
            rho = pair.corr("spearman").iloc[0, 1]
            rows.append({"model": model, "pruned": pruned / heads, "left": len(pair), "rho": rho})
    return pd.DataFrame(rows)


def removed(
    loaded: Tasks,
    runs: Mapping[str, Trajectory],
    pruned: Mapping[str, int],
    budget: float | None,
    finetune_epochs: int = 0,
) -> pd.DataFrame:
    """Remove the first ``pruned[model]`` heads of each run for good: a row a model, before and after.

    Columns model, budget, heads, heads pruned, texts; the metric, parameters and MB, each before and after; and the
    metric after ``finetune_epochs`` more epochs of training where there are any.
    """
    rows = []
    for model, task in loaded.items():
        metric = runs[model].metric.name
        row = {
            "model": model,
            "budget": task.spec.budget if budget is None else budget,
            "heads": int(runs[model].start.sum()),
            "heads pruned": pruned[model],
            "texts": task.num_texts("evaluation"),
            metric: task.measured(),
            "parameters": num_parameters(task.model),
            "MB": memory_mb(task.model),
        }
        gnorm.remove_heads(task.model, runs[model].mask(pruned[model]))
        row |= {
            f"{metric} after": task.measured(),
            "parameters after": num_parameters(task.model),
            "MB after": memory_mb(task.model),
        }
        if finetune_epochs:
            further = Recipe(data={}, max_length=task.max_length, epochs=finetune_epochs, lr=5e-5)
            train(model, further, task.model, task.tokenizer, task.splits["train"], progress=True)
            row[f"{metric} finetuned"] = task.measured()
        rows.append(row)
    return pd.DataFrame(rows)
