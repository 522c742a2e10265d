#!/usr/bin/env bash
# One would guess: a task whose p-value is NaN stays NaN, and the other tasks are corrected as if it were not there.
# What happens: one NaN makes every corrected p-value NaN with fdr_bh, fdr_by and simes-hochberg, while the flags beside
#   them still say what is rejected; with hommel the flags too say that nothing is. Holm's flag says that the
#   task without a p-value is significant, where all others are. Bonferroni counts it as one test more. No warning.
#   scipy's ttest_rel gives NaN where the scores of two models are equal.
# Version: statsmodels 0.15.0, scipy 1.17.1
# Source: statsmodels/stats/multitest.py, fdrcorrection (np.minimum.accumulate from the largest p-value on, where
#   argsort puts NaN) and multipletests (notreject = pvals > alphaf / ..., which is false for NaN)
# What to do: take the NaN out before the correction; tasks on which the removed heads change nothing have no p-value.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    statsmodels==0.15.0 scipy==1.17.1
venv/bin/python - <<'EOF'
import warnings

import numpy as np
import scipy
import statsmodels
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

print("statsmodels", statsmodels.__version__, "scipy", scipy.__version__)
whole = np.array([80.1, 80.7, 79.8, 80.4, 80.2])  # one score a seed
drops = [[1.0, 1.2, 0.9, 1.1, 1.3], [0.5, 0.8, 0.6, 0.4, 0.9], [0.0] * 5, [0.1, 0.6, 0.2, 0.5, 0.3]]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    p = np.array([ttest_rel(whole, whole - drop).pvalue for drop in drops])
print("p-values of the four tasks:", p.round(5).tolist())
kept = ~np.isnan(p)
assert kept.tolist() == [True, True, False, True] and p[kept].max() < 0.05
corrected, flags = {}, {}
for method in ("fdr_bh", "fdr_by", "simes-hochberg", "hommel", "holm", "bonferroni"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flags[method], corrected[method], *_ = multipletests(p, method=method)
    without = multipletests(p[kept], method=method)
    print(method, "- corrected", corrected[method].round(4).tolist(), "rejected", flags[method].tolist(),
          "- without the NaN", without[1].round(4).tolist(), without[0].tolist())
    if method in ("fdr_bh", "fdr_by", "simes-hochberg", "hommel"):
        assert np.isnan(corrected[method]).all() and without[0].all()
    else:
        assert (corrected[method][kept] >= without[1]).all() and (corrected[method][kept] > without[1]).any()
assert flags["fdr_bh"].tolist() == kept.tolist() and not flags["hommel"].any()
assert flags["holm"].all() and not flags["bonferroni"][2]
print("As stated: one NaN, and no corrected p-value is left, or the NaN itself is significant.")
EOF
