"""Sentences about results, computed from their tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from gnorm.methods import METHODS, MORE_METHODS

from ..analysis import claims, paired
from ..analysis.claims import CLAIMS, QUESTIONS, Claim

Tables = Mapping[str, pd.DataFrame]  # a profile's tables by the name of their file


def title(method: str) -> str:
    """The name of a method as a reader knows it; the name itself where there is no such method."""
    known = METHODS | MORE_METHODS
    return known[method].title if method in known else method


def listed(words: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"; "none" for nothing."""
    words = list(words)
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"


# ---------------------------------------------------------------- what claims come to


Sides = tuple[list[str], list[str], list[str]]  # models, by where the interval lies: above 0, across it, below it

BY_ENDPOINT = {"half": "up to half of the heads", "within": "within two points", "area": "over the whole area"}


def sides(table: pd.DataFrame, method: str, baseline: str) -> Sides:
    """The models by where the interval of the whole area lies, from a table of ``differences``."""
    found = claims.comparison(table, method, baseline)
    above, across, below = (list(found.model[paired.sides(found) == side]) for side in paired.SIDES)
    return above, across, below


def in_words(of: Sides, baseline: str) -> str:
    """On which models a method keeps more accuracy than another, on which less, and on which neither is settled."""
    above, across, below = of
    parts = [f"more accuracy than {title(baseline)} on {listed(above)}"] if above else []
    parts += [f"less {'' if above else f'accuracy than {title(baseline)} '}on {listed(below)}"] if below else []
    if across:
        named = "" if above or below else f" (beside {title(baseline)})"
        parts.append(f"on {listed(across)} it is not settled{named}")
    return "; ".join(parts)


def verdict_of(table: pd.DataFrame, claim: Claim) -> str:
    """The verdict on a claim, with the endpoints that it holds by; the word alone where all agree."""
    found = claims.verdicts(table, [claim]).drop_duplicates("endpoint").set_index("endpoint").verdict
    words = {word: [BY_ENDPOINT[name] for name in found.index[found == word]] for word in dict.fromkeys(found)}
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(f"{word} {listed(by)}" for word, by in words.items())


def evidence(table: pd.DataFrame, claim: Claim) -> str:
    """The outcome of the first two comparisons of a claim over the whole area, a sentence each, with the difference on
    each model; no words where no model has them."""
    sentences: list[str] = []
    judged = claims.judged(table, claim, "area")
    for other in claim.others[:2]:
        rows = judged[judged.baseline == other]
        named = rows.assign(named=[f"{row.model} ({row.difference:+.3f})" for row in rows.itertuples()])
        above, across, below = (list(named.named[named.side == side]) for side in paired.SIDES)
        if above or below:
            who = "It" if sentences else f"Over the whole area {title(claim.method)}"
            sentences.append(f"{who} keeps {in_words((above, across, below), other)}.")
        elif across:
            sentences.append(f"{title(claim.method)} less {title(other)}, on {listed(across)}, is not settled.")
    return " ".join(sentences)


def recommendation(table: pd.DataFrame, methods: pd.DataFrame) -> str:
    """The method to prune one's own model by, and how Greedy-Gnorm does beside it."""
    best, mean = claims.recommended(methods), claims.mean_areas(methods)
    if best == "greedy_gnorm":
        return (
            f"To prune a model of one's own we would take Greedy-Gnorm: its mean area is the largest, {mean[best]:.3f}."
        )
    above, across, below = sides(table, "greedy_gnorm", best)
    settled = [f"less on {listed(below)}"] if below else []
    settled += [f"more on {listed(above)}"] if above else []
    settled += [f"no settled difference on {listed(across)}"] if across else []
    return (
        f"To prune a model of one's own we would take {title(best)}: the mean of its areas over the models is the "
        f"largest, {mean[best]:.3f}, where Greedy-Gnorm has {mean['greedy_gnorm']:.3f}. Beside it Greedy-Gnorm keeps "
        f"{'; '.join(settled)}."
    )


def of_claims(tables: Tables) -> list[tuple[str, str]]:
    """A line (lead, rest) for every claim and question, and what to prune by; none where the notebook never ran."""
    if "differences" not in tables:
        return []
    table = tables["differences"]
    lines = [
        (f"{claim.name}. {claim.says}: {verdict_of(table, claim)}.", evidence(table, claim))
        for claim in CLAIMS + QUESTIONS
    ]
    return [*lines, ("", recommendation(table, tables["methods"]))] if "methods" in tables else lines


# ---------------------------------------------------------------- which method kept most


PAPERS = "the paper's five methods"


def lead(row: Mapping[str, Any], of: str = PAPERS) -> str:
    """The sentence of a row of ``tables.winners``: which method has the largest area ``of`` which, and by how much."""
    return (
        f"Of {of} {title(row['largest area'])} has the largest area ({row['area']:.3f}), before "
        f"{title(row['runner-up'])} ({row['its area']:.3f}); {row['difference']:.3f} more on the same texts "
        f"({row['low']:+.3f} to {row['high']:+.3f})."
    )


def _of_winner(row: Mapping[str, Any], of: str = PAPERS) -> str:
    unsettled = " The interval holds 0: these texts do not settle which is better." if row["low"] <= 0 else ""
    return f"{lead(row, of)}{unsettled}"


def _of_areas(rows: pd.DataFrame) -> str:
    """The accuracy of the intact model, and the area of each method, largest first; of rows of a summary table."""
    areas = rows.sort_values("area", ascending=False, kind="stable")
    each = (f"{title(row['method'])} {row['area']:.3f}" for row in areas.to_dict("records"))
    return f"Intact accuracy {rows['0%'].iloc[0]:.3f} on {rows['texts'].iloc[0]:,} texts; areas: {', '.join(each)}."


def _of_published(rows: pd.DataFrame) -> str:
    """The differences of the areas from the published ones; no words where none is known."""
    if "published" not in rows:
        return ""
    known = rows.dropna(subset=["published"]).to_dict("records")
    each = ", ".join(f"{title(row['method'])} {row['published']:.3f} ({row['difference']:+.3f} here)" for row in known)
    return f"The paper reports: {each}." if each else ""


def _of_solution(row: Mapping[str, Any]) -> str:
    """The heads that can go within the budget; of a row of the table pruning_summary."""
    return (
        f"Within {row['budget']:g} of that accuracy {row['heads pruned']} of {row['heads']} heads can go: accuracy "
        f"{row['accuracy']:.3f} → {row['accuracy after']:.3f}, parameters {row['parameters']:,} → "
        f"{row['parameters after']:,}."
    )


def summary(tables: Tables) -> pd.DataFrame | None:
    """The table with the area of every method on every model, as ``tables.summary_table`` makes it, if there is one."""
    return tables.get("pruning_results")


def overall(tables: Tables) -> str:
    """On which models each method that is ever the best has the largest area; no words without a summary table."""
    table = summary(tables)
    if table is None:
        return ""
    best = table.loc[table.groupby("model", sort=False)["area"].idxmax()]
    first, *others = [
        f"{title(str(method))}{{}} on {listed(rows['model'])}" for method, rows in best.groupby("method", sort=False)
    ]
    each = [first.format(" has the largest area"), *(other.format("") for other in others)]
    return f"Of {table['method'].nunique()} methods {'; '.join(each)}."


def of_methods(tables: Tables) -> list[tuple[str, str]]:
    """A line (model, sentences) for every model: which method kept most, how many heads can go, accuracy and areas."""
    table = summary(tables)
    if table is None:
        return []
    lines = []
    for model, rows in table.groupby("model", sort=False):
        said = [_of_winner(row) for row in _rows_of(tables, "winners", model)]
        said += [_of_areas(rows), _of_published(rows)]
        said += [_of_solution(row) for row in _rows_of(tables, "pruning_summary", model)]
        said += [_of_winner(row, "these and other criteria") for row in _rows_of(tables, "criteria_winners", model)]
        lines.append((f"{model}.", " ".join(filter(None, said))))
    return lines


def _rows_of(tables: Tables, name: str, model: Any) -> Sequence[dict[Any, Any]]:
    """The rows of a table for one model; none where the table is not there."""
    table = tables.get(name)
    return [] if table is None else table[table["model"] == model].to_dict("records")
