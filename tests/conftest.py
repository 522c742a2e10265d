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


def pytest_unconfigure():
    if CONTROLLER:
        shutil.rmtree(os.environ["GNORM_CACHE"], ignore_errors=True)


@pytest.fixture(params=["bert", "roberta", "xlm-roberta", "albert"])
def family(request):
    return request.param


@pytest.fixture
def model(family):
    from tiny import tiny_model  # not above: the process that hands out tests needs no torch

    return tiny_model(family)


@pytest.fixture
def copied(tmp_path):
    """A copy of the project whose notebooks may be altered."""
    from pipeline import copy_of_the_project

    return copy_of_the_project(tmp_path / "projekt für köpfe")


@pytest.fixture
def quick_costs(monkeypatch):
    """Costs of texts of 8 tokens, timed in five turns; tests/test_costs.py tests the times."""
    from gnorm.shipping import costs

    monkeypatch.setattr(costs, "usual_lengths", lambda model: [8])
    timed = costs.seconds_of
    for module in ("costs", "choosing"):
        quick = lambda models, inputs, *_, **__: timed(models, inputs, rounds=5, seconds=0)
        monkeypatch.setattr(f"gnorm.shipping.{module}.seconds_of", quick)


LONGEST = ("test_run_all.py", "test_study.py", "test_cut_off.py", "test_paper.py", "test_ranks.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that the others fill the time beside them."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))
