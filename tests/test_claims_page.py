"""What tools/claims_page.py says of tables that are written by hand."""

import sys

import numpy as np
import pandas as pd
import pytest
from pipeline import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import claims_page


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_page, "RESULTS", tmp_path)
    (tmp_path / "tables").mkdir()
    return tmp_path


def test_what_a_threshold_takes_is_said_with_its_interval_and_led_by_it(results):
    gains = {("a", "greedy_gnorm"): [0.1, 0.1, 0.13], ("b", "greedy_gnorm"): [-0.1, 0.2, 0.1]}
    gains |= {(model, "random"): [0.2, 0.2, 0.2] for model in "ab"}
    rows = [
        (model, f"{model}/seed{seed}", method, 0.5, 0.5 + gain)
        for (model, method), each in gains.items()
        for seed, gain in enumerate(each)
    ]
    table = pd.DataFrame(rows, columns=["model", "training", "method", "area", "refitted area"]).assign(
        verdict="no dip"
    )
    table.to_csv(results / "tables" / "threshold_dips.csv", index=False)
    said = claims_page.of_thresholds()
    half = 4.302652729911275 * np.std([0.1, 0.1, 0.13], ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert said.startswith("**A drifted threshold is part of what accuracy loses, on a.**")
    assert f"Greedy-Gnorm changes by a +0.110 ({0.11 - half:+.3f} to {0.11 + half:+.3f}) and b +0.067 (-0.313" in said
    assert "that of random pruning by a +0.200 (+0.200 to +0.200) and b +0.200" in said
    assert said.endswith("no dip was deep enough; this was looked at instead.")
    table.loc[0, "verdict"] = "heads"
    table.to_csv(results / "tables" / "threshold_dips.csv", index=False)
    assert claims_page.of_thresholds().endswith("Of 12 runs 1 had a dip to judge; by the rule the threshold made 0.")
