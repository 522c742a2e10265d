#!/usr/bin/env bash
# One would guess: where two models are right on the same texts, McNemar's test finds nothing: p is 1, or NaN for a
#   quotient 0 / 0.
# What happens: with the correction for continuity (the default of mlxtend; of statsmodels with exact=False) the
#   statistic is (|b - c| - 1)^2 / (b + c).
#   Without one text on which the models differ it is 1 / 0, infinite, and p is 0.0: the surest difference there is.
#   numpy warns of a division by zero once, in a notebook among others. Where b equals c the statistic is above 0 too.
#   The exact test gives 1.0.
# Version: mlxtend 0.25.0, statsmodels 0.15.0
# Source: mlxtend/evaluate/mcnemar.py, mcnemar (corrected); statsmodels/stats/contingency_tables.py, mcnemar
#   (correction)
# What to do: exact=True, or test only where b + c is above 0: removing heads that do nothing changes no prediction.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    mlxtend==0.25.0 statsmodels==0.15.0
venv/bin/python - <<'EOF'
import warnings

import mlxtend
import numpy as np
import statsmodels
from mlxtend.evaluate import mcnemar as by_mlxtend
from mlxtend.evaluate import mcnemar_table
from statsmodels.stats.contingency_tables import mcnemar as by_statsmodels

print("mlxtend", mlxtend.__version__, "statsmodels", statsmodels.__version__)
labels = np.array([0, 1] * 50)
whole = np.where(np.arange(100) < 90, labels, 1 - labels)  # right on 90 of 100 texts
pruned = whole.copy()  # and so is the pruned model, on the same ones
table = mcnemar_table(labels, whole, pruned)
print("table:", table.tolist())
assert table.tolist() == [[90, 0], [0, 10]]
with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    found = {"mlxtend": by_mlxtend(table), "mlxtend, exact": by_mlxtend(table, exact=True)}
    for name, exact in (("statsmodels, exact=False", False), ("statsmodels, exact", True)):
        result = by_statsmodels(table, exact=exact)
        found[name] = result.statistic, result.pvalue
for name, (statistic, p) in found.items():
    print(name, "- statistic", statistic, "p", p)
assert [p for _, p in found.values()] == [0, 1, 0, 1]
assert found["mlxtend"][0] == found["statsmodels, exact=False"][0] == np.inf
print("As stated: p is 0 for two models that are equal.")
EOF
