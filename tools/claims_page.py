"""The text of docs/claims.md, from the tables of profile study and claims_page.md.j2; tools/pages.py writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from experiments.analysis import claims, paired
from experiments.analysis.claims import CLAIMS, QUESTIONS, Claim, other_criteria
from experiments.analysis.claims import factors as factors_of
from experiments.data.profiles import read_profile
from experiments.report.sentences import BY_ENDPOINT, evidence, listed, recommendation, sides, title, verdict_of

RESULTS = Path(__file__).resolve().parents[1] / "experiments_results" / "study"
PAPER: Mapping[str, Any] = read_profile("paper").models


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / "tables" / f"{name}.csv")


def cell(row: Any) -> str:
    """A difference with its interval, in bold where the interval keeps clear of 0 in the digits that are shown."""
    text = f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
    return text if row.side == "across 0" or "+0.000" in text or "-0.000" in text else f"**{text}**"


def matrix(table: pd.DataFrame, pairs: Iterable[tuple[str, str]], endpoint: str = "area") -> str:
    """Differences by an endpoint, a row for each pair and a column for each model."""
    models = list(dict.fromkeys(table.model))
    rows = []
    for method, baseline in pairs:
        found = claims.comparison(table, method, baseline, endpoint)
        found = found.assign(side=paired.sides(found)).set_index("model")
        cells = [cell(found.loc[model]) if model in found.index else "not run" for model in models]
        rows.append([f"{title(method)} less {title(baseline)}", *cells])
    return pd.DataFrame(rows, columns=[f"{paired.ENDPOINTS[endpoint].title} (95 %)", *models]).to_markdown(index=False)


def about_claim(table: pd.DataFrame, claim: Claim) -> str:
    pairs = claim.pairs
    parts = [f"### {claim.name}. {claim.says}: {verdict_of(table, claim)}"]
    parts += [matrix(table, pairs, endpoint) for endpoint in paired.ENDPOINTS]
    if len(pairs) > 1:
        found = claims.verdicts(table, [claim])
        words = []
        for other, rows in found.groupby("baseline", sort=False):
            each = zip(rows["of this comparison"], rows.endpoint, strict=True)
            words.append(f"{title(str(other))}: {listed(f'{word} {BY_ENDPOINT[name]}' for word, name in each)}")
        parts.append(f"By comparison: {'; '.join(words)}.")
    return "\n\n".join(parts)


def lines_of(table: pd.DataFrame, asked: Iterable[Claim]) -> str:
    """Claims with verdict and evidence, a line each."""
    return "\n".join(f"- **{c.name}. {c.says}: {verdict_of(table, c)}.** {evidence(table, c)}" for c in asked)


def on_pretrained() -> str:
    """The models that were pretrained: intact accuracy, what was asked of them, and differences by each endpoint."""
    table = read("pretrained_differences")
    pairs = [pair for claim in claims.OF_PRETRAINED for pair in claim.pairs]
    methods = read("pretrained_methods").drop_duplicates("model")
    intact = listed(f"{row.model} {row.intact:.3f} ({row.seeds} trainings)" for row in methods.itertuples())
    parts = [f"Accuracy of the intact models, median: {intact}.", lines_of(table, claims.OF_PRETRAINED)]
    return "\n\n".join(parts + [matrix(table, pairs, endpoint) for endpoint in paired.ENDPOINTS])


def rule() -> str:
    """How often the rule says each word, by truth."""
    table = read("rule").assign(endpoint=lambda rows: rows.endpoint.map(lambda name: paired.ENDPOINTS[name].title))
    return table[["endpoint", "truth", *table.columns.drop(["endpoint", "truth"])]].to_markdown(
        index=False, floatfmt=".3f"
    )


def ranking(methods: pd.DataFrame) -> str:
    return ", ".join(f"{title(name)} {value:.3f}" for name, value in claims.mean_areas(methods).items())


def in_five_lines() -> str:
    """The README's words on the study."""
    table, methods = read("differences"), read("methods")
    lines = [lines_of(table, [claim]) for claim in CLAIMS]
    lines[0] = f"{lines[0]} {published_against()}".rstrip()
    lines.append(lines_of(table, QUESTIONS[:1]))
    others = (in_short_on_pretrained(), of_writing(), of_thresholds(), recommendation(table, methods))
    lines += [f"- {words}" for words in others]
    return "\n".join(lines)


def in_short_on_pretrained() -> str:
    """The verdicts on pretrained models alone, in a sentence."""
    table = read("pretrained_differences")
    verdicts = "; ".join(f"{claim.name} {verdict_of(table, claim)}" for claim in claims.OF_PRETRAINED)
    return f"**On pretrained models alone** (MiniLM on {table.model.nunique()} tasks): {verdicts}."


def of_writing() -> str:
    """What becomes of Greedy-Gnorm where heads are written otherwise, in a few sentences."""
    table = read("rescaling")
    moved = table.query("method == 'greedy_gnorm' and pair == 'values'").rename(columns={"rank correlation": "rho"})
    last = moved[moved.deviation == moved.deviation.max()]
    rho = listed(f"{row.rho:.2f} on {row.model}" for row in last.itertuples())
    importance = table[table["method"] == "head_importance"][["same order", "runs"]].sum()
    return (
        "**G-norm is not a property of what a model computes.** Value rows of a head times c, and its output columns "
        "by c, move no logit and change the order of Greedy-Gnorm: with log c of standard deviation "
        f"{last.deviation.max():g} the rank correlation with the order as trained is {rho}. {unsettled(moved)} "
        f"Head importance keeps its order in {importance['same order']} of {importance.runs} runs. {balance()}"
    )


def of_thresholds() -> str:
    """How much of the areas of Greedy-Gnorm and of random pruning comes back with refitted biases, in sentences."""
    table = read("threshold_dips")
    table["gain"] = table["refitted area"] - table.area
    gains = {method: [] for method in ("greedy_gnorm", "random")}
    settled = []
    for model, rows in table.groupby("model", sort=False):
        for method, words in gains.items():
            found = rows.gain[rows["method"] == method].to_numpy()
            low, high = paired.seed_interval(found)
            words.append(f"{model} {found.mean():+.3f} ({low:+.3f} to {high:+.3f})")
            settled += [str(model)] * (method == "greedy_gnorm" and low > 0)
    lead = f"A drifted threshold is part of what accuracy loses, on {listed(settled)}" if settled else "Thresholds"
    deep = table.verdict[table.verdict != "no dip"]
    made = (deep == "threshold").sum()
    judged = f"Of {len(table)} runs {len(deep)} had a dip to judge; by the rule the threshold made {made}."
    unplanned = "What was planned was to judge dips, and no dip was deep enough; this was looked at instead."
    return (
        f"**{lead}.** With one number added to the logits of each class, refitted on validation texts at every state, "
        f"the whole area of Greedy-Gnorm changes by {listed(gains['greedy_gnorm'])}, that of random pruning by "
        f"{listed(gains['random'])} (95 %, over trainings). {unplanned if deep.empty else judged}"
    )


def unsettled(moved: pd.DataFrame) -> str:
    """Where the interval of the change of the area keeps clear of 0; of rows of the table rescaling."""
    clear = moved[(moved.low > 0) | (moved.high < 0)]
    if clear.empty:
        return "What that does to its area is not settled: every interval holds 0."
    where = listed(f"{row.model} at {row.deviation:g} ({row.area:+.3f})" for row in clear.itertuples())
    return f"Its area changes, with an interval that keeps clear of 0, on {where}; elsewhere that is not settled."


def balance() -> str:
    """How far heads are from balance as they were trained."""
    values = read("logits_moved").query("pair == 'values'")["as trained"]
    return (
        f"As they were trained, heads of these models are nearly balanced: log c has a standard deviation of "
        f"{values.min():.2f} to {values.max():.2f}, far below the smallest that was tried."
    )


def by_model(column: str, table: pd.DataFrame) -> str:
    """ "bert 3, albert 5": the first value of a column, by model."""
    return ", ".join(f"{model} {rows[column].iloc[0]}" for model, rows in table.groupby("model", sort=False))


def methods_by_model(methods: pd.DataFrame) -> str:
    return ", ".join(f"{model} {len(rows)}" for model, rows in methods.groupby("model", sort=False))


def factors(table: pd.DataFrame) -> str:
    """The effect of each change of the paper's choice, in a list."""
    lines = []
    for factor, variants in factors_of().items():
        words = []
        for variant in variants:
            above, _, below = sides(table, "greedy_gnorm", variant)
            if above or below:
                gains = [f"worse on {listed(above)}"] if above else []
                gains += [f"better on {listed(below)}"] if below else []
                words.append(f"{title(variant)}: {', '.join(gains)}")
        lines.append(f"- **{factor}**: {'; '.join(words) if words else 'no settled difference on any model'}.")
    return "\n".join(lines)


def spread(methods: pd.DataFrame) -> str:
    """The spread of areas over training seeds."""
    rows = methods[methods["method"] == "greedy_gnorm"]
    return "; ".join(f"{row.model} {row.minimum:.3f} to {row.maximum:.3f}" for row in rows.itertuples())


def scoring_texts() -> str:
    table = read("scoring_variants")
    by_texts = table[table.varied == "texts"]
    lines = []
    for model, rows in by_texts.groupby("model", sort=False):
        rho = rows.groupby("number")["rank correlation"].mean()
        lines.append(f"{model} " + ", ".join(f"{value:.2f} with {number}" for number, value in list(rho.items())[:-1]))
    return (
        f"Rank correlation of the intact model's scores with those of {int(by_texts.number.max())} scoring texts "
        "(mean over "
        f"draws): {'; '.join(lines)}."
    )


def area_of_variants() -> str:
    table = read("scoring_variants").dropna(subset=["area"])
    lines = []
    for varied, what in (("texts", "numbers and draws of scoring texts"), ("batch", "batch sizes")):
        of_kind = table[table.varied == varied]
        ranges = "; ".join(
            f"{model} {rows.area.min():.3f} to {rows.area.max():.3f}"
            for model, rows in of_kind.groupby("model", sort=False)
        )
        lines.append(f"Areas of Greedy-Gnorm over {what}, one training: {ranges}.")
    return " ".join(lines)


def layers_and_heads() -> str:
    """Areas by whose layers and whose heads go, means over trainings: a table for each model."""
    parts = []
    for model, rows in read("layers_and_heads").groupby("model", sort=False):
        wide = rows.pivot_table(index="layers of", columns="heads by", values="area", sort=False)
        wide = wide.rename(index=title, columns=title).rename_axis(f"{model}: layers of", axis=0)
        parts.append(wide.to_markdown(floatfmt=".3f"))
    return "\n\n".join(parts)


def sharp_attention() -> str:
    """Effects of sharp attention, a row each and a column for each model; and how many came as expected."""
    table = read("sharpness_effects").rename(columns={"mean": "difference", "found": "side"})
    table = table.fillna({"side": "across 0", "expected": ""})
    change = table.effect.str.startswith("change")
    rows = table[(table.factor == np.where(change, 2, 1)) & (table.share == 0) & (change | (table.expected != ""))]
    rows = rows.assign(cell=[cell(row) for row in rows.itertuples()])
    wide = rows.pivot_table(
        index=["effect", "expected"],
        columns="model",
        values="cell",
        aggfunc="first",
        sort=False,
        fill_value="one layer",
    )
    counts = []
    for words, those in (
        ("of entropy within a layer", rows.effect.str.startswith("rho")),
        ("of doubled logits", rows.effect.str.startswith("change")),
        ("of the last layer", rows.effect.str.startswith("last")),
    ):
        asked = rows[those & (rows.expected != "")]
        counts.append(f"{words}, {(asked.expected == asked.side).sum()} of {len(asked)}")
    return f"{wide.reset_index().to_markdown(index=False)}\n\nSettled as expected: {'; '.join(counts)}."


def dips_by_cause() -> str:
    """How many deep dips the threshold made, what refitting does to them, and mean areas: a line a model."""
    lines = []
    states = read("thresholds").set_index(["training", "method", "share"])
    for model, rows in read("threshold_dips").groupby("model", sort=False):
        deep = rows[rows.verdict != "no dip"]
        bottoms = states.loc[[*zip(deep.training, deep["method"], deep.share, strict=True)]]
        change = bottoms.refitted - bottoms.accuracy
        low, median, high = deep["given back"].quantile([0, 0.5, 1])
        judged = (
            f"the threshold made {(deep.verdict == 'threshold').sum()} of them; refitting takes away {low:.2f} to "
            f"{high:.2f} of the depth of a dip, {median:.2f} in the median, and changes accuracy at its bottom by "
            f"{change.min():+.3f} to {change.max():+.3f}; "
        )
        lines.append(
            f"- **{model}**: {len(deep)} of {len(rows)} runs have a dip to judge; {judged if len(deep) else ''}"
            f"the mean area is {rows.area.mean():.3f}, with biases refitted {rows['refitted area'].mean():.3f}, under "
            f"the AUROC curve {rows['AUROC area'].mean():.3f}."
        )
    return "\n".join(lines)


def layers_or_heads() -> str:
    """What differences of areas come from, a row for each model and pair of methods."""
    table = read("layers_or_heads")
    table = table.assign(
        cell=[cell(row) for row in table.assign(side=paired.sides(table)).itertuples()],
        pair=[f"{title(row.method)} less {title(row.baseline)}" for row in table.itertuples()],
    )
    wide = table.pivot_table(index=["model", "pair"], columns="changed", values="cell", aggfunc="first", sort=False)
    return wide.reset_index().to_markdown(index=False)


COLUMNS = ["intact", "intact trained", "pruned", "trained"]


def written_otherwise() -> str:
    """What becomes of the order and the area of Greedy-Gnorm where heads are written otherwise, a sentence a model."""
    table, logits = read("rescaling"), read("logits_moved")
    moved = table[(table["method"] == "greedy_gnorm") & (table.pair == "values")]
    deviations = listed(f"{value:g}" for value in dict.fromkeys(moved.deviation))
    lines = []
    for model, rows in moved.groupby("model", sort=False):
        rho = listed(f"{value:.2f}" for value in rows["rank correlation"])
        change = listed(f"{row.area:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in rows.itertuples())
        lines.append(f"- **{model}** ({rows.trainings.iloc[0]} trainings): rank correlation {rho}; area {change}.")
    largest = f"{logits.change.max():g}"
    return (
        f"The largest change of a logit is {largest}, on {listed(f'{n:,}' for n in logits.texts.unique())} texts of "
        f"each model, with factors up to {logits.factor.max():g}. With log c of standard deviation {deviations}, the "
        "rank correlation of Greedy-Gnorm's order with its order on the model as it was trained, and the change of its "
        f"area (95 %, over trainings):\n\n{chr(10).join(lines)}\n\n{unsettled(moved)} {balance()}"
    )


def orders_kept(kept: bool) -> str:
    """The scores whose orders are the same in all runs with heads written otherwise, or in fewer, with the numbers."""
    table = read("rescaling").groupby(["pair", "method"], sort=False)[["same order", "runs"]].sum()
    found = table[(table["same order"] == table.runs) == kept]
    pairs = {"values": "value and output", "keys": "query and key"}
    parts = []
    for pair, rows in found.groupby("pair", sort=False):
        each = (f"{title(method)} ({row['same order']:.0f} of {row.runs:.0f})" for (_, method), row in rows.iterrows())
        parts.append(f"{pairs[pair]}: {listed(each)}")
    return "; ".join(parts)


def after_training() -> str:
    table = read("recovery")
    groups = table.groupby(["model", "method"], sort=False)
    shown = groups[COLUMNS].mean().reset_index()
    shown.insert(1, "trainings", groups.repetition.nunique().to_numpy())
    shown["method"] = [title(name) for name in shown["method"]]
    return shown.to_markdown(index=False, floatfmt=".3f")


def spread_after_training() -> str:
    table = read("recovery").groupby(["model", "method"])[["pruned", "trained"]].mean()
    gaps = table.groupby("model").agg(lambda values: values.max() - values.min())
    return "; ".join(f"{model} {row.pruned:.3f} before and {row.trained:.3f} after" for model, row in gaps.iterrows())


def how_they_answer() -> str:
    table = read("answers")
    half = table[table.share.isin([0.0, 0.5])]
    wide = (
        half.groupby(["model", "method", "share"], sort=False)[["accuracy", "calibration error", "agreement"]]
        .mean()
        .reset_index()
    )
    wide.insert(1, "trainings", wide.model.map(table.groupby("model").repetition.nunique()))
    intact = wide[wide.share == 0].drop_duplicates("model").assign(method="intact")
    pruned = wide[wide.share == 0.5].assign(method=lambda rows: [title(name) for name in rows["method"]])
    rows = pd.concat(
        [pd.concat([intact[intact.model == m], pruned[pruned.model == m]]) for m in dict.fromkeys(wide.model)]
    )
    return rows.drop(columns="share").to_markdown(index=False, floatfmt=".3f")


# A row of the page's table on the published numbers: what it says, and its cell from a row of published_claims.
PUBLISHED: dict[str, Callable[[Any], str]] = {
    "area: Greedy-Gnorm": lambda row: f"{row.greedy_gnorm:.3f}",
    "area: attention entropy, highest first": lambda row: f"{row.attention_entropy:.3f}",
    "area: attention entropy, lowest first": lambda row: f"{row.inverse_attention_entropy:.3f}",
    "area: random, mean (s.d.) of the trials": lambda row: f"{row.random:.3f} ({row['random sd']:.3f})",
    "area: Greedy-Gnorm less random (95 %)": lambda row: f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})",
    "area: trials larger than Greedy-Gnorm (95 %)": lambda row: trials(row, "larger"),
    "first half: Greedy-Gnorm": lambda row: f"{row['half greedy_gnorm']:.3f}",
    "first half: random, mean of the trials": lambda row: f"{row['half random']:.3f}",
    "first half: trials larger than Greedy-Gnorm (95 %)": lambda row: trials(row, "half larger"),
    "within a point: Greedy-Gnorm": lambda row: f"{100 * row['within greedy_gnorm']:.0f} %",
    "within a point: attention entropy, highest first": lambda row: f"{100 * row['within attention_entropy']:.0f} %",
    "within a point: attention entropy, lowest first": lambda row: (
        f"{100 * row['within inverse_attention_entropy']:.0f} %"
    ),
    "within a point: random, mean of the trials": lambda row: f"{100 * row['within random']:.0f} %",
    "removal step and entropy, rho (p)": lambda row: f"{row.rho:+.2f} ({row.p:.4f})",
    "accuracies: multiples of 1/n": lambda row: f"{row.multiples:,} of {row.accuracies:,}",
    "accuracies: n": lambda row: str(row.texts),
    "final solution: heads pruned": lambda row: f"{row.solution:.0f}",
    "final solution: first of the order": lambda row: YES[row.prefix],
    "final solution: lowest entropy": lambda row: YES[row["lowest entropy"]],
}
YES = {True: "yes", False: "no"}


def trials(row: Any, name: str) -> str:
    """ "22 of 25 (70 to 96 %)": how many random trials, and the interval of their share."""
    low, high = 100 * row[f"{name} low"], 100 * row[f"{name} high"]
    return f"{row[name]:.0f} of {row.trials:.0f} ({low:.0f} to {high:.0f} %)"


def published_numbers() -> str:
    """What the authors' files say, a column for each model."""
    cells = {row.model: [say(row) for say in PUBLISHED.values()] for _, row in read("published_claims").iterrows()}
    return pd.DataFrame(cells, index=list(PUBLISHED)).to_markdown(disable_numparse=True)


def published_against() -> str:
    """On which of the paper's models random pruning has, more often than not, a larger area than Greedy-Gnorm."""
    rows = read("published_claims").query("larger > trials / 2")
    return " ".join(
        f"By the authors' own files C1 fails on one of the paper's models, {row.model} "
        f"({PAPER[row.model].checkpoint.repo}): {row.larger:.0f} of {row.trials:.0f} random trials have a larger area "
        f"than Greedy-Gnorm, and {row['half larger']:.0f} of {row.trials:.0f} a larger one up to half of the heads."
        for _, row in rows.iterrows()
    )


def published_entropy() -> str:
    """In which of the published orders heads of low attention entropy go first."""
    table = read("published_claims")
    low = [f"{row.model} {row.rho:+.2f}" for row in table.itertuples() if row.rho > 0]
    return (
        f"Within a layer, heads of low entropy go first in {len(low)} of {len(table)} published orders: {listed(low)}."
    )


def by_layer(rows: pd.DataFrame) -> str:
    """ "5 heads of layer 19 -0.091, ...": the heads that went from a layer and what that changed, the most first.

    Layers of less than half a point are put together.
    """
    sums = rows.groupby("layer").change.agg(["size", "sum"])
    small = sums["sum"].abs() < 0.005 - 1e-9
    named = sums[~small].sort_values("sum", key=np.abs, ascending=False, kind="stable")
    parts = [
        f"{count} head{'s' if count > 1 else ''} of layer {layer} {change:+.3f}"
        for layer, count, change in named.itertuples()
    ]
    others = sums[small].sum()
    return ", ".join(parts + ([f"{others['size']:.0f} of other layers {others['sum']:+.3f}"] if small.any() else []))


def published_dips() -> str:
    """Each published dip in words, and its steps in a table."""
    parts = []
    for model, rows in read("published_dip").groupby("model", sort=False):
        words = [f"**{model}.**"]
        for name, run in rows[rows.run != "before"].groupby("run", sort=False):
            first, last = run.step.min(), run.step.max()
            before = rows[rows.step == first - 1].iloc[0]
            words.append(
                f"The {name} is steps {first} to {last}, from {before.accuracy:.3f} to {run.accuracy.iloc[-1]:.3f}: "
                f"{by_layer(run)}. Layers that were empty before it: {before['empty']}."
            )
        table = rows.drop(columns="model").assign(
            accuracy=[f"{value:.3f}" for value in rows.accuracy], change=[f"{value:+.3f}" for value in rows.change]
        )
        table = table.rename(columns={"left": "heads left in the layer", "empty": "empty layers"})
        parts += [" ".join(words), table.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(parts)


def local_dips() -> str:
    """Where Greedy-Gnorm lies below random pruning on the models here, and what matched random does there."""
    lines = []
    for model, rows in read("dips").groupby("model", sort=False):
        below = rows[rows.greedy_gnorm < rows.random - 0.005]
        if below.empty:
            most = rows[rows["share pruned"].between(0.05, 0.95)]["below random"].max()
            lines.append(
                f"- **{model}**: at no tenth of the heads in the mean over seeds; at a single tenth in at most {most} "
                f"of {rows.seeds.iloc[0]} seeds."
            )
            continue
        worst = below.loc[(below.greedy_gnorm - below.random).idxmin()]
        lines.append(
            f"- **{model}**: at {listed(f'{share:.0%}' for share in below['share pruned'])} pruned; most at "
            f"{worst['share pruned']:.0%}: {worst.greedy_gnorm:.3f}, matched random {worst.matched_random:.3f}, random "
            f"{worst.random:.3f}; the last layer has {worst['last layer']:.1f} heads left, {worst['empty']:.1f} "
            "layers are empty."
        )
    return "\n".join(lines)


def page() -> str:
    """docs/claims.md below its heading: tools/claims_page.md.j2, filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {function.__name__: function for function in PARTS}
    return (
        environment.get_template("claims_page.md.j2")
        .render(
            table=read("differences"),
            methods=read("methods"),
            claims=CLAIMS,
            questions=QUESTIONS,
            others=[("greedy_gnorm", name) for name in other_criteria()],
            recommended=claims.recommended(read("methods")),
            tables="../experiments_results/study/tables",
            figures="../figures/study",
        )
        .rstrip()
    )


PARTS = (
    by_model,
    methods_by_model,
    in_five_lines,
    lines_of,
    on_pretrained,
    rule,
    about_claim,
    factors,
    matrix,
    ranking,
    recommendation,
    spread,
    scoring_texts,
    area_of_variants,
    written_otherwise,
    orders_kept,
    layers_and_heads,
    sharp_attention,
    dips_by_cause,
    of_thresholds,
    layers_or_heads,
    after_training,
    spread_after_training,
    how_they_answer,
    published_numbers,
    published_against,
    published_entropy,
    published_dips,
    local_dips,
)
