"""A profile's results, small and made by hand: two models, two methods, accuracies that can be counted."""

import numpy as np
import pandas as pd
import torch

from experiments.analysis import plots, tables
from experiments.files import paths, provenance
from experiments.runs import results, stamps
from gnorm.trajectory import Trajectory

TEXTS = 20
ACCURACIES = {  # after every second head
    "bert": {"greedy_gnorm": [0.9, 0.9, 0.8, 0.5], "random": [0.9, 0.6, 0.5, 0.5]},
    "albert": {"greedy_gnorm": [0.8, 0.6, 0.5], "random": [0.8, 0.6, 0.5]},
}
SIZES = {"bert": (2, 3), "albert": (1, 4)}  # layers, heads


def trajectory(model, method):
    """Heads go two by two, Greedy-Gnorm's from the first on, random's from the last on."""
    layers, heads = SIZES[model]
    accuracies = ACCURACIES[model][method]
    order = [(layer, head) for layer in range(layers) for head in range(heads)]
    order = order if method == "greedy_gnorm" else order[::-1]
    rows = [(0, 0, None, None, None, accuracies[0])]
    rows += [(0, 2 * (k // 2 + 1), *head, 0.0, accuracies[k // 2 + 1]) for k, head in enumerate(order)]
    table = pd.DataFrame(rows, columns=["trial", "pruned_heads", "layer", "head", "score", "accuracy"])
    table = table.astype({"layer": "Int64", "head": "Int64"})
    correct = np.stack([np.arange(TEXTS) < round(accuracy * TEXTS) for accuracy in table.accuracy])
    about = {"profile": "smoke", "title": f"The {model}, <b>small</b> </script>", "method": method}
    about |= {"evaluation_texts": TEXTS, "scoring_texts": 8, "device": "cpu"}
    return Trajectory(table, correct, torch.ones(layers, heads, dtype=torch.bool), about)


def write_results():
    """Trajectories, tables and one figure of profile smoke under $GNORM_OUTPUT; returns a manifest that covers them."""
    runs = {model: {method: trajectory(model, method) for method in ACCURACIES[model]} for model in ACCURACIES}
    for model, methods in runs.items():
        for method, each in methods.items():
            results.save_trajectory(each, "smoke", model, method)
    results.save_table(tables.summary_table(runs), "smoke", "pruning_results")
    results.save_table(tables.winners(runs), "smoke", "winners")
    results.save_figure(plots.pruning_curves(runs), "smoke", "pruning_results")
    files = [path for path in paths.root().rglob("*") if path.is_file() and ".run" not in path.parts]
    written = {path.relative_to(paths.root()).as_posix(): stamps.digest_of(path) for path in files}
    stamp = {"fingerprint": "f", "parameters": {"profile": "smoke", "models": list(runs)}, "seconds": 2.0}
    return {
        "profile": "smoke",
        "models": list(runs),
        "device": "cpu",
        "finished": "2026-01-02T03:04:05+00:00",
        "environment": provenance.environment(),
        "notebooks": {"show_pruning_result": stamp | {"written": written}},
    }
