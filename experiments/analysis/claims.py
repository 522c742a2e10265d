"""Claims of the paper and questions of a reviewer, each as pairs of methods, written down before the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gnorm.methods import METHODS, MORE_METHODS, find_method, names_of
from gnorm.metrics import METRICS

from .paired import ENDPOINTS, EQUAL, SIDES, Repeated, differences, error_rates, holm, sides, verdict


@dataclass(frozen=True)
class Claim:
    """That a method keeps the metric longer than others: its area is better than theirs.

    A claim holds against every one of ``others``: it is supported where each comparison is, contradicted where one is,
    equal where all are, else open (``paired.verdict``).
    """

    name: str
    says: str
    others: tuple[str, ...]
    method: str = "greedy_gnorm"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons that it rests on: (its method, one of the others)."""
        return [(self.method, other) for other in self.others]


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
    # Asked after the first runs.
    Claim("Q8", "Greedy-Gnorm keeps accuracy longer than entropy's other end", ("inverse_attention_entropy",)),
)

# Those that are asked again of pretrained models alone.
OF_PRETRAINED = tuple(claim for claim in CLAIMS + QUESTIONS if claim.name in ("C1", "C2", "Q1", "Q3", "Q5", "Q8"))


def methods_of(asked: Sequence[Claim]) -> list[str]:
    """The methods that these claims compare, each once."""
    return list(dict.fromkeys(name for claim in asked for name in (claim.method, *claim.others)))


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


def pairs() -> list[tuple[str, str]]:
    """Pairs (method, baseline): Greedy-Gnorm against every method; every method against random pruning; scores against
    those of shuffled weights and labels; and one criterion against itself, scored more or less often."""
    methods = list(METHODS | MORE_METHODS)
    return [
        *[("greedy_gnorm", other) for other in methods if other != "greedy_gnorm"],
        *[(method, "random") for method in methods if method not in ("greedy_gnorm", "random")],
        *[("gnorm_once", "gnorm_shuffled_weights"), ("head_importance", "importance_shuffled_labels")],
        *[pair for of_one in schedules().values() for pair in of_one if pair[0] != "greedy_gnorm"],
    ]


def all_differences(runs: Mapping[str, Repeated]) -> pd.DataFrame:
    """``paired.differences`` of all ``pairs`` of methods that the runs have."""
    return differences(runs, pairs())


def comparison(table: pd.DataFrame, method: str, other: str, endpoint: str = "area") -> pd.DataFrame:
    """The rows of a table of ``differences`` for one pair of methods and one endpoint, a row for each model."""
    return table[(table["method"] == method) & (table["baseline"] == other) & (table["endpoint"] == endpoint)]


def seconds(runs: Mapping[str, Repeated], claims: Sequence[Claim]) -> pd.DataFrame:
    """A row for every model and comparison of ``claims``: what all runs of both methods took, as measured.

    Columns claim, model, method, baseline, seconds.
    """
    rows = []
    for claim in claims:
        for pair in claim.pairs:
            for model, methods in runs.items():
                if methods.keys() >= {*pair}:
                    took = sum(run.info["seconds"] for name in pair for run in methods[name])
                    rows.append((claim.name, model, *pair, round(took, 1)))
    return pd.DataFrame(rows, columns=["claim", "model", "method", "baseline", "seconds"])


def verdicts(table: pd.DataFrame, claims: Sequence[Claim]) -> pd.DataFrame:
    """A row for every endpoint and comparison of every claim, from a table of ``differences``.

    Columns claim, says, endpoint, verdict (of the claim), method, baseline; of this comparison: its own verdict, and
    the number of models whose interval lies above 0, across it, below it, and is equal to 0. A comparison that no model
    has is open. Where a claim has several comparisons, the p-values of a model are corrected by Holm inside the claim,
    and one that is not below 0.05 counts as across 0. Comparisons that are one (``same_as``) count once.
    """
    rows = []
    for claim in claims:
        for endpoint in ENDPOINTS:
            rows_of = judged(table, claim, endpoint)
            single = [
                verdict(of.side.tolist(), of.equal.tolist())
                for of in (rows_of[rows_of.baseline == b] for b in claim.others)
            ]
            found = {*single}
            whole = "contradicted" if "contradicted" in found else found.pop() if len(found) == 1 else "open"
            for other, one in zip(claim.others, single, strict=True):
                of_comparison = rows_of[rows_of.baseline == other]
                rows.append(
                    {
                        "claim": claim.name,
                        "says": claim.says,
                        "endpoint": endpoint,
                        "verdict": whole,
                        "method": claim.method,
                        "baseline": other,
                        "of this comparison": one,
                        **{side: int((of_comparison.side == side).sum()) for side in SIDES},
                        "equal": int(of_comparison.equal.sum()),
                    }
                )
    return pd.DataFrame(rows)


def judged(table: pd.DataFrame, claim: Claim, endpoint: str) -> pd.DataFrame:
    """The rows of a claim by one endpoint, with the side on which each counts, and whether it is equal to 0."""
    found = pd.concat([comparison(table, *pair, endpoint) for pair in claim.pairs])
    found = found.assign(same_as=found.same_as.astype(object).fillna(""))  # as a file has it
    elsewhere = (found.same_as != "") & ~found.same_as.isin(claim.others)
    found = found[~elsewhere].assign(side=lambda rows: sides(rows))
    found = found.assign(equal=(found.low90 > -EQUAL) & (found.high90 < EQUAL))
    for _, of_model in found.groupby("model") if len(claim.others) > 1 else ():
        once = of_model[of_model.same_as == ""]
        corrected = dict(zip(once.baseline, holm(once.p.tolist()), strict=True))
        p = [corrected[same or name] for name, same in zip(of_model.baseline, of_model.same_as, strict=True)]
        found.loc[of_model.index[np.array(p) >= 0.05], "side"] = SIDES[1]
    return found


def rule_errors(table: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """``paired.error_rates`` of the first comparison of a claim, by each endpoint that is a mean over texts."""
    found = []
    for endpoint, row in ENDPOINTS.items():
        rows = comparison(table, *claim.pairs[0], endpoint)
        rows = rows[rows.seeds > 1]
        if row.linear and len(rows) and rows.of_rest.all():
            found.append(error_rates(rows).assign(endpoint=endpoint))
    return pd.concat(found) if found else pd.DataFrame()


def mean_areas(methods: pd.DataFrame, metric: str = "accuracy") -> pd.Series:
    """The mean over models of the median area over training seeds, from a ``tables.method_table``: by method, of the
    methods that every model was pruned by, the best first."""
    wide = methods.pivot(index="method", columns="model", values="median").dropna()
    ranked = wide.mean(axis=1).sort_values()
    return ranked[::-1] if METRICS[metric].higher_is_better else ranked


def recommended(methods: pd.DataFrame, metric: str = "accuracy") -> str:
    """The method to prune one's own model by: the first of ``mean_areas`` that is not a control."""
    return next(str(name) for name in mean_areas(methods, metric).index if find_method(str(name)).kind != "control")
