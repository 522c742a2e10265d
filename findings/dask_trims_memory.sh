#!/usr/bin/env bash
# One would guess: a function takes as long in a worker of Dask's LocalCluster as in a process of one's own with as many
#   threads.
# What happens: on Linux, Dask starts its workers with MALLOC_TRIM_THRESHOLD_=65536. glibc then gives freed memory back
#   to the system whenever 64 KiB are free at its end, and what is allocated next is new pages, which the system has to
#   fill with zeros first. Forward passes of an encoder on a CPU meet ten to a hundred times as many page faults as in a
#   process of one's own, and take longer: seeds and trials that were handed to a cluster to save time cost it.
# Version: distributed 2026.8.0, torch 2.13.0
# Source: distributed/distributed.yaml, distributed.nanny.pre-spawn-environ; glibc's manual, Malloc Tunable Parameters
# What to do: set distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_ to None before LocalCluster, or
#   MALLOC_TRIM_THRESHOLD_ to a large number in the environment of `dask worker`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    dask==2026.8.0 distributed==2026.8.0 torch==2.13.0 numpy==2.4.6
cat > faults.py <<'EOF'
import resource
import time

import torch
from torch import nn


def passes():
    """Page faults, and seconds of this process, of 100 forward passes of a small encoder on texts of other lengths."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 8, 512, batch_first=True)
    model = nn.TransformerEncoder(layer, 4).eval()
    with torch.no_grad():
        for count in (10, 100):  # the first passes are a start
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
            for i in range(count):
                model(torch.randn(32, 16 + i % 32, 128))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, time.process_time() - began
EOF
cat > finding.py <<'EOF'
import dask
import distributed
import torch
from faults import passes


def in_worker():
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            return client.submit(passes, pure=False).result()


if __name__ == "__main__":
    print("distributed", distributed.__version__, "torch", torch.__version__)
    ways = {"a process of one's own": passes()}
    with dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}):
        ways["a worker without it"] = in_worker()  # first: the setting stays in the environment of this process
    ways["a worker"] = in_worker()
    for name, (faults, seconds) in ways.items():
        print("%-22s %8d page faults, %.2f s" % (name, faults, seconds))
    own, without, worker = (faults for faults, _ in ways.values())
    assert worker > 5 * max(own, without)
    print("As stated: Dask's setting brings the page faults.")
EOF
PYTHONPATH=. venv/bin/python finding.py
