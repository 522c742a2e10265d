"""The checks before a release: python tools/release.py, or make release.

The wheel is built, installed with its dependencies into a fresh environment, and `gnorm prune` runs there on a tiny
checkpoint, without this repository; the folder that it writes is then read by transformers alone, in a
process that cannot import gnorm. Every step is printed as it passes; the first that does not ends the
script with exit code 1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHECKPOINT = """
import random, torch, transformers
words = [f"w{i}" for i in range(60)]
vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
transformers.BertTokenizer(vocab=vocabulary).save_pretrained("checkpoint")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, num_labels=2, **sizes)
transformers.BertForSequenceClassification(config).save_pretrained("checkpoint")
random.seed(0)
with open("texts.csv", "w") as file:
    print("text,label", file=file)
    for i in range(90):
        print(" ".join(random.choices(words, k=random.randint(3, 12))), i % 2, sep=",", file=file)
"""

READ_BACK = """
import sys
sys.modules["gnorm"] = None  # any import of it fails
import transformers
model = transformers.AutoModelForSequenceClassification.from_pretrained("smaller", trust_remote_code=True)
left = [sum(row) for row in model.config.head_mask]
assert sum(left) == 5, left
assert model.bert.encoder.layer[0].attention.self.query.out_features == 8 * left[0]
"""


def step(says: str, *command: str | Path, cwd: Path) -> str:
    """Run a command without this repository on its path; print whether it passed; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    print(f"{'passed' if done.returncode == 0 else 'FAILED'}: {says}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    texts = {name: (ROOT / name).read_text("utf-8") for name in ("CHANGELOG.md", "CITATION.cff")}
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", texts["CHANGELOG.md"], re.MULTILINE):
        sys.exit(f"FAILED: CHANGELOG.md has no dated entry of version {version}: write it.")
    if f"version: {version}\n" not in texts["CITATION.cff"]:
        sys.exit(f"FAILED: CITATION.cff names another version than {version}: correct it.")
    print(f"passed: CHANGELOG.md and CITATION.cff name version {version}")
    step("nothing is left to commit", "git", "diff", "--exit-code", "--stat", "HEAD", cwd=ROOT)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        python = home / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        step("the wheel builds", sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", home, ROOT, cwd=home)
        (wheel,) = home.glob("gnorm-*.whl")
        step("a fresh environment is made", sys.executable, "-m", "venv", home / ".venv", cwd=home)
        step("the wheel installs with what it needs", python, "-m", "pip", "install", wheel, cwd=home)
        step("a checkpoint and texts are there", python, "-c", CHECKPOINT, cwd=home)
        command = [python.with_name("gnorm"), "prune", "checkpoint", "texts.csv", "smaller", "--heads", "3"]
        printed = step("gnorm prune runs", *command, cwd=home)
        step("transformers alone reads the folder", python, "-c", READ_BACK, cwd=home)
        print(printed)


if __name__ == "__main__":
    main()
