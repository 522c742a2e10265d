"""Claims of the paper and questions of a reviewer, each as pairs of methods, written down before the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from gnorm.methods import METHODS, MORE_METHODS, find_method, names_of
from gnorm.metrics import METRICS

from .paired import SIDES, Repeated, differences, sides, verdict


@dataclass(frozen=True)
class Claim:
    """That a method keeps the metric longer than others: its area is better than theirs.

    A claim holds against every one of ``others``: it is supported where each comparison is, contradicted where one is,
    else open (``paired.verdict``).
    """

    name: str
    says: str
    others: tuple[str, ...]
    method: str = "greedy_gnorm"


CLAIMS = (
    Claim(
        "C1",
        "Greedy-Gnorm keeps accuracy longer than attention entropy and random pruning",
        ("attention_entropy", "random"),
    ),
    Claim("C2", "Scoring afresh after every removal is why", ("gnorm_once",)),
    Claim(
        "C3",
        "The product of the query, key and value gradient norms is the right score",
        ("gnorm_sum", "gnorm_max", "gnorm_q", "gnorm_k", "gnorm_v", "gnorm_qk", "gnorm_qkvo"),
    ),
)

# What the claims leave open, asked in the same way.
QUESTIONS = (
    Claim("Q1", "The score knows which heads of a layer go, not only how many", ("matched_random",)),
    Claim("Q2", "It is the gradient, and not that entropy is taken once", ("entropy_every_step",)),
    Claim("Q3", "Greedy-Gnorm keeps accuracy longer than head importance, which is older", ("head_importance",)),
    Claim("Q4", "It owes its gain to what the model has learned", ("gnorm_shuffled_weights",), method="gnorm_once"),
    Claim("Q5", "Scoring afresh helps head importance", ("importance_once",), method="head_importance"),
    Claim("Q6", "Scoring afresh helps attention entropy", ("attention_entropy",), method="entropy_every_step"),
    Claim(
        "Q7", "Head importance owes its gain to the labels", ("importance_shuffled_labels",), method="head_importance"
    ),
)


def factors() -> dict[str, list[str]]:
    """One factor at a time beside the paper's choice: the methods by the ``factor`` of their row."""
    found: dict[str, list[str]] = {}
    for name, row in MORE_METHODS.items():
        if row.factor:
            found.setdefault(row.factor, []).append(name)
    return found


def schedules() -> dict[str, list[tuple[str, str]]]:
    """By criterion, pairs (method, baseline): the criterion scored more often, and scored once; rarest first."""
    rows, found = METHODS | MORE_METHODS, dict[str, list[tuple[str, str]]]()
    for once, row in rows.items():
        others = [
            (name, other.rescore_every)
            for name, other in rows.items()
            if (other.criterion, other.highest_first) == (row.criterion, row.highest_first) and other.rescore_every
        ]
        if not row.rescore_every and any(rows[name].kind == "schedule" for name, _ in others):
            title = row.title.partition(",")[0]
            found[title] = [(name, once) for name, _ in sorted(others, key=lambda other: -other[1])]
    return found


def other_criteria() -> list[str]:
    """The criteria that are not the paper's, and the oracle."""
    return [*names_of("criterion"), "oracle"]


def families() -> list[list[tuple[str, str]]]:
    """Pairs (method, baseline) in families, within which p-values are corrected together: Greedy-Gnorm against every
    method; every method against random pruning; and one criterion against itself, scored more or less often."""
    methods = list(METHODS | MORE_METHODS)
    return [
        [("greedy_gnorm", other) for other in methods if other != "greedy_gnorm"],
        [(method, "random") for method in methods if method not in ("greedy_gnorm", "random")],
        [("gnorm_once", "gnorm_shuffled_weights"), ("head_importance", "importance_shuffled_labels")],
        *([pair for pair in pairs if pair[0] != "greedy_gnorm"] for pairs in schedules().values()),
    ]


def all_differences(runs: Mapping[str, Repeated]) -> pd.DataFrame:
    """``paired.differences`` of all ``families``."""
    return differences(runs, families())


def comparison(table: pd.DataFrame, method: str, other: str) -> pd.DataFrame:
    """The rows of a table of ``differences`` for one pair of methods, a row for each model."""
    return table[(table["method"] == method) & (table["baseline"] == other)]


def seconds(runs: Mapping[str, Repeated], claims: Sequence[Claim]) -> pd.DataFrame:
    """A row for every model and comparison of ``claims``: what all runs of both methods took, as measured.

    Columns claim, model, method, baseline, seconds.
    """
    rows = []
    for claim in claims:
        for other in claim.others:
            for model, methods in runs.items():
                if claim.method in methods and other in methods:
                    took = sum(run.info["seconds"] for name in (claim.method, other) for run in methods[name])
                    rows.append((claim.name, model, claim.method, other, round(took, 1)))
    return pd.DataFrame(rows, columns=["claim", "model", "method", "baseline", "seconds"])


def verdicts(table: pd.DataFrame, claims: Sequence[Claim]) -> pd.DataFrame:
    """A row for every comparison of every claim, from a table of ``differences``.

    Columns claim, says, verdict (of the claim), method, baseline, of this comparison: its own verdict, and the number
    of models whose interval lies above 0, across it, below it. A comparison that no model has is open.
    """
    rows = []
    for claim in claims:
        of_claim = [(other, comparison(table, claim.method, other)) for other in claim.others]
        single = [verdict(found) for _, found in of_claim]
        whole = "contradicted" if "contradicted" in single else "supported" if set(single) == {"supported"} else "open"
        for (other, found), one in zip(of_claim, single, strict=True):
            rows.append(
                {
                    "claim": claim.name,
                    "says": claim.says,
                    "verdict": whole,
                    "method": claim.method,
                    "baseline": other,
                    "of this comparison": one,
                    **{side: int((sides(found) == side).sum()) for side in SIDES},
                }
            )
    return pd.DataFrame(rows)


def mean_areas(methods: pd.DataFrame, metric: str = "accuracy") -> pd.Series:
    """The mean over models of the median area over training seeds, from a ``tables.method_table``: by method, of the
    methods that every model was pruned by, the best first."""
    wide = methods.pivot(index="method", columns="model", values="median").dropna()
    ranked = wide.mean(axis=1).sort_values()
    return ranked[::-1] if METRICS[metric].higher_is_better else ranked


def recommended(methods: pd.DataFrame, metric: str = "accuracy") -> str:
    """The method to prune one's own model by: the first of ``mean_areas`` that is not a control."""
    return next(str(name) for name in mean_areas(methods, metric).index if find_method(str(name)).kind != "control")
