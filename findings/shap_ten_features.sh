#!/usr/bin/env bash
# One would guess: KernelExplainer gives each of 16 heads, the gates of a model, its Shapley value; in a model that is
#   linear in the gates these are its coefficients.
# What happens: l1_reg is 'num_features(10)' unless it is set, so a selection keeps at most ten features. All others get
#   exactly 0, among them one that is worth more than a third of the best, and their value is spread over the ten, so
#   that the sum is still right. Of 144 heads 134 would be 0. No warning.
# Version: shap 0.51.0, numpy 2.4.6
# Source: shap/explainers/_kernel.py, KernelExplainer.shap_values (l1_reg) and solve (lars_path on r features)
# What to do: pass l1_reg=False whenever heads are ranked or removed by shap; a score of exactly 0 is no finding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    shap==0.51.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import importlib.metadata
import warnings

import numpy as np
import shap

for name in ("shap", "numpy"):
    print(name, importlib.metadata.version(name))
heads = 16
worth = np.arange(1, heads + 1) / heads
found = {}
for name, options in (("as it comes", {}), ("l1_reg=False", {"l1_reg": False})):
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer = shap.KernelExplainer(lambda gates: gates @ worth, np.zeros((1, heads)))
        found[name] = explainer.shap_values(np.ones((1, heads)), silent=True, **options)[0]
    print(name, found[name].round(3).tolist(), "sum", found[name].sum().round(6))
print("coefficients", worth.round(3).tolist(), "sum", worth.sum())
values = found["as it comes"]
assert np.count_nonzero(values) == 10 and (values[:6] == 0).all() and (values[6:] > worth[6:] + 0.05).all()
assert abs(values.sum() - worth.sum()) < 1e-6 and np.allclose(found["l1_reg=False"], worth, atol=1e-6)
print("As stated: ten heads have a value, and none of them the right one.")
EOF
