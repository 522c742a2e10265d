#!/usr/bin/env bash
# One would guess: ModelPruning(amount=0.5) removes half of the weights, and what is left is what training made of them.
# What happens: amount is taken of what is left after every epoch (apply_pruning is True), so an eighth is left after
#   three. use_lottery_ticket_hypothesis is True as well: after the first epoch the pruned layers have their weights of
#   before the training, while all others keep theirs. It works once only: the parameter is then the stored copy itself,
#   so it trains along, and the resets after the second and third epoch do nothing. verbose=0 logs none of it.
# Version: pytorch-lightning 2.6.6, torch 2.13.0
# Source: pytorch_lightning/callbacks/pruning.py, ModelPruning.__init__ (defaults), _run_pruning and _copy_param
#   (`dst.data = src.data`)
# What to do: for a fine-tuned model say use_lottery_ticket_hypothesis=False and apply_pruning=lambda epoch: epoch == 0,
#   and count what is zero afterwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 pytorch-lightning==2.6.6
export PYTHONWARNINGS=ignore
venv/bin/python - <<'EOF'
import importlib.metadata
import logging

import pytorch_lightning
import torch
from pytorch_lightning.callbacks import ModelPruning

for name in ("pytorch-lightning", "torch"):
    print(name, importlib.metadata.version(name))
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Net(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.output = torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)

    def training_step(self, batch, _):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.output(self.layer(inputs)), targets)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def trained(epochs, **options):
    torch.manual_seed(0)
    net = Net()
    before = [linear.weight.detach().clone() for linear in (net.layer, net.output)]
    inputs = torch.randn(64, 8)
    rows = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    pruning = ModelPruning(
        "ln_structured", parameters_to_prune=[(net.layer, "weight")], use_global_unstructured=False, amount=0.5,
        pruning_dim=0, pruning_norm=2, **options,
    )
    pytorch_lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[pruning], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(net, torch.utils.data.DataLoader(rows, batch_size=16))
    left = net.layer.weight.abs().sum(1) > 0
    changes = [(net.layer.weight - before[0])[left], net.output.weight - before[1]]
    return int(left.sum()), *(round(change.abs().max().item(), 4) for change in changes)


once = dict(use_lottery_ticket_hypothesis=False, apply_pruning=lambda epoch: epoch == 0)
found = {(epochs, name): trained(epochs, **options)
         for name, options in (("as it comes", {}), ("once, no lottery ticket", once)) for epochs in (1, 2, 3)}
for (epochs, name), (left, pruned, other) in found.items():
    print(name, "- epochs", epochs, "rows left", left, "of 16, largest change of their weights", pruned,
          "and of the other layer's", other)
assert [left for left, *_ in found.values()] == [8, 4, 2, 8, 8, 8]
changes = [pruned for _, pruned, _ in found.values()]
assert changes[0] == 0 and min(changes[1:]) > 0.01 and min(other for *_, other in found.values()) > 0.01
print("As stated: pruned again every epoch, and the first epoch is lost on what was pruned.")
EOF
