import gc
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread waits more than it works
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach for a hub
CONTROLLER = "PYTEST_XDIST_WORKER" not in os.environ
if CONTROLLER:  # models are trained anew, once for all workers; at home nothing is
    os.environ["GNORM_CACHE"] = tempfile.mkdtemp(prefix="gnorm-tests-")

gc.set_threshold(700, 10, 1000)  # not 10: imports make much and no garbage, and searching it all takes a second

import pytest
import torch
from pipeline import ROOT
from transformers import AutoConfig, AutoModelForSequenceClassification

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "pad_token_id": 1,
    "initializer_range": 0.15,  # attention far from uniform, so that heads differ
}
FAMILIES = {"bert": {}, "roberta": {}, "xlm-roberta": {}, "albert": {"embedding_size": 16}}


def tiny_model(family, seed=0, **overrides):
    """A model of the family, random weights, 3 layers (albert: 3 passes of one block) x 4 heads of 8."""
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def ragged_batches(count=3, size=5, seed=1, longest=17, vocabulary=120, labels=3):
    """Batches of random texts of 2 to ``longest`` tokens, each padded to its own longest; the last one is smaller."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(count):
        n = size if i < count - 1 else size - 2
        lengths = torch.randint(2, longest + 1, (n,), generator=generator)
        width = int(lengths.max())
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        ids = torch.randint(3, vocabulary, (n, width), generator=generator)
        batches.append(
            {
                "input_ids": torch.where(mask == 1, ids, 1),
                "attention_mask": mask,
                "labels": torch.randint(0, labels, (n,), generator=generator),
            }
        )
    return batches


def pytest_unconfigure():
    if CONTROLLER:
        shutil.rmtree(os.environ["GNORM_CACHE"], ignore_errors=True)


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return tiny_model(family)


@pytest.fixture
def copied(tmp_path):
    """A copy of the project whose notebooks may be altered."""
    root = tmp_path / "projekt für köpfe"
    root.mkdir()
    for name in ("gnorm", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_all.py", root)
    return root


LONGEST = ("test_run_all.py", "test_paper.py", "test_cut_off.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that the others fill the time beside them."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))
