"""Captions of tables and figures: a row each, in the order in which the report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AREA = "Area: under the accuracy curve, 0 to 1, heads pruned as a share."
PAIRED = (
    "Difference: the method less the baseline, on the same trained models and texts, mean over training seeds. "
    "Interval and p: Student's t over training seeds and texts, which are crossed; of one seed a bootstrap over texts."
)
MASKS = "Within the budget of the profile. Blue: kept, grey: pruned."
OVER_TEXTS = "Interval: 95 % bootstrap over the texts."


@dataclass(frozen=True)
class Caption:
    """A table, a figure, or both of one name. texts: on which ones it was made, "" where on none or on several kinds.

    columns: headings that differ from those of ``COLUMNS``, by the name of the column.
    """

    title: str
    caption: str
    texts: str = "evaluation"
    columns: Mapping[str, str] = field(default_factory=dict)


# By the name of the file, without its ending. First what the paper shows, in its order, then what goes beyond it.
ROWS: dict[str, Caption] = {
    "pruning_results": Caption(
        "Accuracy as heads go, every method",
        f"Accuracy with 0, 25, 50, 75 and 100 % of the heads pruned. {AREA} {OVER_TEXTS}",
    ),
    "published_solutions": Caption(
        "The paper's final solutions", "The quoted numbers beside what was measured at the same share of heads pruned."
    ),
    "winners": Caption(
        "The largest area and the runner-up", f"Difference: on the same texts. {OVER_TEXTS} Training is not repeated."
    ),
    "data_processing": Caption("The texts", "Lengths in tokens, and how many texts have each label."),
    "four_models": Caption(
        "What heads and feed-forward blocks are worth",
        "Accuracy of the intact model, without any head, and without the feed-forward blocks as well.",
    ),
    "attention_entropy": Caption("Attention entropy of every head", "In nats, mean over query tokens and texts.", ""),
    "gradient_test": Caption(
        "How long the order of the first scores holds",
        "Spearman's rank correlation of the scores of the heads that are left with their scores in the intact model.",
        "scoring",
        {"pruned": "pruned (share)"},
    ),
    "gradient_pooling": Caption(
        "One head goes, the gradients of the others change",
        "Change of the gradients of the last layer's query weights, average-pooled.",
        "scoring",
    ),
    "underflow_entropy": Caption(
        "Where entropy underflows", "Entropy of a saturated attention, in nats, by four forms; truth in float64.", ""
    ),
    "underflow_products": Caption(
        "Where products of norms underflow",
        "Real gradients times ever smaller factors: what is left of the order of the heads, as rank correlation.",
        "scoring",
    ),
    "greedy_pruning": Caption("Greedy-Gnorm", f"Accuracy as heads go. {OVER_TEXTS}"),
    "inverse_greedy_gnorm_pruning": Caption("Inverse Greedy-Gnorm", f"Accuracy as heads go. {OVER_TEXTS}"),
    "ae_pruning": Caption("Attention entropy and activation energy", f"Accuracy as heads go. {OVER_TEXTS}"),
    "ae_inverse_pruning": Caption(
        "Inverse attention entropy and activation energy", f"Accuracy as heads go. {OVER_TEXTS}"
    ),
    "random_pruning": Caption("Random pruning", "Boxes: over trials. Line: Greedy-Gnorm."),
    "greedyprune_all_models": Caption("Greedy-Gnorm on all models", f"Against the share of heads pruned. {AREA}"),
    "closeness": Caption(
        "How close the choices were",
        "Gap: between the scores (logarithms) of the last head that went and the first that was kept.",
        "scoring",
    ),
    "custom_bert_pruning": Caption("A hand-written BERT", "By a strategy of one's own: small value weights first."),
    **{
        f"{name}_mask": Caption(f"{title}: the heads that are left", MASKS)
        for name, title in (
            ("greedy_pruning", "Greedy-Gnorm"),
            ("inverse_greedy_gnorm_pruning", "Inverse Greedy-Gnorm"),
            ("ae_pruning", "Attention entropy and activation energy"),
            ("ae_inverse_pruning", "The inverse of both"),
            ("custom_bert_pruning", "The hand-written BERT"),
        )
    },
    "final_solutions": Caption("The heads that are left", MASKS),
    "pruning_summary": Caption(
        "The smallest model within the budget", "Before and after its heads were removed for good."
    ),
    "costs": Caption(
        "What the smaller model costs",
        "Beside the intact one; times are medians over turns. Returned: the share of the saved operations that came "
        "back as time.",
        "",
    ),
    # ---- beyond the paper
    "criteria_comparison": Caption("Other people's criteria, the same protocol", f"{AREA} {OVER_TEXTS}"),
    "criteria_curves": Caption("Other people's criteria, the curves", f"Accuracy as heads go. {OVER_TEXTS}"),
    "criteria_winners": Caption("The largest area of all criteria", f"Difference: on the same texts. {OVER_TEXTS}"),
    "prune_your_model": Caption("A model of one's own", "The notebook's example.", ""),
    "prune_your_model_costs": Caption(
        "What a budget buys", "Dots: states of the run. Star: what the budget chose.", ""
    ),
    "recovery_along": Caption(
        "Accuracy before and after training what is left",
        "Pruned: as pruned. Trained: further, on labels. Distilled: half of the loss is the distance to the logits of "
        "the intact model.",
    ),
    "recovery_within": Caption(
        "How many more heads can go once what is left is trained", "Chosen on validation texts, measured on others."
    ),
    "decoder_pruning": Caption("A language model as heads go", f"Perplexity: lower is better. {OVER_TEXTS}"),
    "decoder_winners": Caption("The smallest area under the perplexity curve", f"{OVER_TEXTS} Lower is better."),
    "claims": Caption(
        "What the paper claims",
        "On how many models the interval of the difference lies above 0, across it and below it, by endpoint. A "
        "comparison is supported if above on at least three and below on none, contradicted if below on at least two, "
        "equal if the 90 % interval lies within 0.01 on all, else open.",
    ),
    "claims_half": Caption("What the paper claims, up to half of the heads", "Area up to half of the heads pruned."),
    "pretrained": Caption(
        "What the paper claims, of pretrained models",
        "On how many models the interval of the difference lies above 0, across it and below it, by endpoint. "
        "Judged by the rule of the claims.",
    ),
    "pretrained_differences": Caption("Differences on pretrained models", PAIRED),
    "pretrained_methods": Caption("The area of every method on pretrained models", f"{AREA} Over training seeds."),
    "pretrained_half": Caption("Pretrained models, up to half of the heads", "Area up to half of the heads pruned."),
    "pretrained_within": Caption("Pretrained models, heads within two points", "Share of the heads pruned."),
    "pretrained_area": Caption("Pretrained models, the whole area", "Area under the whole curve."),
    "rule": Caption(
        "How often the rule says each word",
        "By simulation with the variances that were observed. Coverage: how often a 95 % interval holds the truth.",
    ),
    "curves": Caption("The paper's methods over training seeds", "Lines: means over training seeds; bands: all seeds."),
    "differences": Caption("Every difference", PAIRED),
    "methods": Caption("The area of every method", f"{AREA} Over training seeds."),
    "questions": Caption("What the claims leave open", "Judged by the same rule as the claims."),
    "comparison_seconds": Caption("What each comparison took", "All runs of both methods, as measured.", ""),
    "matched_random": Caption(
        "Which head of a layer, or only which layer",
        "Matched random takes as many heads from each layer as Greedy-Gnorm. Lines: means over training seeds.",
    ),
    "dips": Caption(
        "Where Greedy-Gnorm falls below random pruning",
        "Accuracy, mean over training seeds; in how many seeds it is below random; heads left in the last layer and "
        "empty layers.",
    ),
    "published_claims": Caption(
        "What the published numbers say by themselves",
        "Recomputed from the authors' files. Areas under the accuracy curve; random: mean over trials. Difference: of "
        "Greedy-Gnorm less random, 95 % t-interval over trials. Larger: trials with a larger area than Greedy-Gnorm; "
        "95 % Wilson interval of their share. Within: heads that can go within one point of accuracy, as a share. Rho: "
        "rank correlation of attention entropy and the step of removal, mean over layers.",
        "",
        {"random": "random", "greedy_gnorm": "Greedy-Gnorm", "texts": "n of texts"},
    ),
    "published_dip": Caption(
        "A published dip, step by step",
        "Recomputed from the authors' files: the largest fall and the largest recovery of Greedy-Gnorm up to half of "
        "the heads. Change: of accuracy, by the step.",
        "",
        {"left": "heads left in the layer", "empty": "layers without heads"},
    ),
    "ablations": Caption("One factor at a time", PAIRED),
    "when_scored": Caption("How often heads are scored", PAIRED),
    "other_criteria": Caption("Other people's criteria over training seeds", PAIRED),
    "training_seeds": Caption("Areas by training seed", "Where lines cross, one training would name another winner."),
    "scoring_variants": Caption(
        "How many scoring texts, and in which batches",
        "Rank correlation of the intact model's scores with those of the most texts, and of the profile's batch size.",
        "",
    ),
    "layers_and_heads": Caption(
        "The layers of one method, the heads of another",
        "Step by step a head goes from the layer that one method takes it from; which, another method says. Area: mean "
        "over training seeds.",
    ),
    "layers_or_heads": Caption(
        "What a difference of areas comes from",
        "How much larger the area is than the baseline's where layers, heads of them, or both are the method's. Mean "
        "over training seeds, 95 % t-interval.",
    ),
    "rescaled_orders": Caption(
        "Heads written otherwise, run by run",
        "Rank correlation: of the steps of removal with those of the model as it was trained. Area, and up to half of "
        "the heads: how much they change.",
        columns={"deviation": "s.d. of log c", "area": "change of the area", "half": "change up to half"},
    ),
    "rescaling": Caption(
        "Heads written otherwise: what becomes of the order",
        "Value rows times c and output columns by c, or query rows times c and key rows by c: what a model computes is "
        "the same. Rank correlation: of the steps of removal with those of the model as it was trained. Area: its "
        "change, mean over trainings, 95 % t-interval.",
        columns={"deviation": "s.d. of log c", "area": "change of the area"},
    ),
    "logits_moved": Caption(
        "Heads written otherwise: what becomes of the logits",
        "Factor: the largest of all heads. Change: the largest of a logit. As trained: the standard deviation over "
        "heads of log c, with c the factor that would give both projections of a pair one norm.",
    ),
    "sharpness": Caption(
        "Sharp attention and the gradients of query and key",
        "Attention entropy (nats, mean over passes of a shared block) beside the logarithms of the gradient norms of "
        "query, key and value, whose sum is G-norm. Factor: of all attention logits; it is taken out of key. Dots: "
        "heads as trained; lines: means of a layer with logits times 0.5, 1 and 2.",
        "scoring",
    ),
    "sharpness_by_layer": Caption(
        "Sharp attention, layer by layer",
        "Means over heads and trainings. Rho: Spearman's rank correlation with entropy over the heads of the layer, of "
        "three or more, mean over trainings.",
        "scoring",
    ),
    "sharpness_effects": Caption(
        "Sharp attention: what was expected and what was found",
        "Mean over layers and trainings; interval: Student's t over trainings. Rho: Spearman's rank correlation with "
        "entropy over the heads of a layer. Change: from factor 1, of entropy (nats) and of the logarithms of norms. "
        "Last layer: less the mean of the others. Positive: how many of the layers of all trainings.",
        "scoring",
    ),
    "thresholds": Caption(
        "What the threshold owes to a dip, state by state",
        "Accuracy as the model answers, and with class biases refitted on the split that heads are scored on; AUROC: "
        "mean over classes, each against the rest. Of methods that draw at random, the first trial.",
        columns={"pruned heads": "heads pruned", "refitted": "accuracy, biases refitted"},
    ),
    "threshold_dips": Caption(
        "Dips of accuracy: lost heads or a drifted threshold",
        "Dip: how far accuracy lies below both its best before and its best after, at the deepest. Given back: the "
        "share of it that refitted biases take away. Verdict: threshold from a half on, else heads; dips of less than "
        "0.05 are not judged.",
        columns={
            "refitted there": "depth there, biases refitted",
            "AUROC there": "depth there, AUROC",
            "refitted dip": "deepest dip, biases refitted",
            "AUROC dip": "deepest dip, AUROC",
            "refitted area": "area, biases refitted",
            "AUROC area": "area under the AUROC curve",
        },
    ),
    "sanity_checks": Caption("What is left when weights or labels are shuffled", PAIRED),
    "cost_quality": Caption("What a method costs and what it keeps", f"{AREA} Seconds: of one run, as measured."),
    "recovery": Caption(
        "After one more epoch of training",
        "Accuracy with half of the heads removed, before and after, and of the intact model after one more epoch.",
        columns={
            "pruned": "accuracy, pruned",
            "intact": "accuracy, intact",
            "trained": "accuracy, trained",
            "intact trained": "accuracy, intact and trained",
        },
    ),
    "answers": Caption(
        "How sure, and how like the intact model",
        "Calibration error: expected. Agreement: the share of texts that get the intact model's answer.",
    ),
    "calibration": Caption("How sure, and how like the intact model, drawn", "Means over training seeds."),
}

# Columns whose heading is not clear from their name, or lacks its unit.
COLUMNS: dict[str, str] = {
    "0%": "accuracy, intact",
    "25%": "25 % pruned",
    "50%": "50 % pruned",
    "75%": "75 % pruned",
    "100%": "100 % pruned",
    "low": "from (95 %)",
    "high": "to (95 %)",
    "area_low": "from (95 %)",
    "area_high": "to (95 %)",
    "low90": "from (90 %)",
    "high90": "to (90 %)",
    "same_as": "the same runs as",
    "published": "published area",
    "MB": "memory (MB)",
    "MB after": "memory after (MB)",
    "ms": "time (ms)",
    "ms after": "time after (ms)",
    "ms spread": "spread (ms)",
    "ms spread after": "spread after (ms)",
    "GFLOP": "operations (GFLOP)",
    "GFLOP after": "operations after (GFLOP)",
    "flops saved": "operations saved (share)",
    "time saved": "time saved (share)",
    "length": "length (tokens)",
    "seconds": "time (s)",
    "scoring seconds": "scoring (s)",
    "smallest gap": "smallest gap (log)",
    "distance": "distance (logits)",
    "exact": "exact (nats)",
    "plain": "plain (nats)",
    "eps_inside": "eps inside (nats)",
    "eps_both": "eps in both places (nats)",
    "share": "pruned (share)",
    "rho": "rank correlation",
    "budget": "budget (accuracy)",
    "most frequent label": "most frequent label (share)",
    "below random": "below random (seeds)",
    "empty": "empty layers",
    "last layer": "heads in the last layer",
    "greedy_gnorm": "Greedy-Gnorm (accuracy)",
    "matched_random": "Matched random (accuracy)",
    "random": "Random (accuracy)",
    "texts": "texts (n)",
    "minimum": "smallest area",
    "median": "median area",
    "maximum": "largest area",
}
