"""Random draws of ``fuzz``: some hundred here, GNORM_FUZZ_DRAWS in the soak; and that it sees what is wrong."""

import dataclasses
import os

import fuzz
import models
import pytest
import torch

SHORT = 40  # draws of every run of the tests
LONG = int(os.environ.get("GNORM_FUZZ_DRAWS") or 20_000)  # draws of the soak
GROUP = 20


def draws(first, count):
    """Failures of ``count`` draws, each with the line that repeats it."""
    failures = []
    for seed in range(first, first + count):
        try:
            fuzz.check(seed)
        except AssertionError as error:
            failures.append(str(error))
    return failures


def test_every_family_is_drawn():
    """But for those without a classifier, those in which rounding may choose another expert, and without a layout."""
    left_out = {*models.named("translator", "language model"), "mixtral", "qwen3_moe"}
    assert set(fuzz.DRAWN) == {*map(models.family_of, models.BY_HAND)} - left_out


@pytest.mark.parametrize("first", range(0, SHORT, GROUP))
def test_draws_agree_with_plain_autograd(first):
    failures = draws(first, GROUP)
    assert not failures, "\n\n".join(failures)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(1_000, 1_000 + LONG, 1_000))
def test_thousands_of_draws_agree_with_plain_autograd(first):
    failures = draws(first, min(1_000, 1_000 + LONG - first))
    assert not failures, "\n\n".join(failures)


def altered(name, monkeypatch, alter):
    """The criterion of a method gives something else."""
    row = fuzz.CRITERIA[name]
    monkeypatch.setitem(
        fuzz.CRITERIA, name, dataclasses.replace(row, criterion=lambda *given: alter(row.criterion(*given), *given))
    )


def test_a_score_that_is_off_is_seen_and_the_line_repeats_it(monkeypatch, capsys):
    altered("greedy_gnorm", monkeypatch, lambda scores, *_: scores + 0.01)
    first, *_ = [failure for failure in draws(0, 4) if "gnorm_scores is off by 0.01, " in failure]
    seed = first.splitlines()[0].removeprefix("draw ").removesuffix(":")
    assert first.endswith(f"repeat with: python tests/fuzz.py {seed}")
    assert fuzz.main(int(seed)) == 1
    assert first in capsys.readouterr().out


def test_two_heads_that_change_places_are_seen(monkeypatch):
    altered("attention_entropy", monkeypatch, lambda entropy, *_: entropy.flip(1))
    assert any("attention_entropy is off" in failure for failure in draws(0, 4))


def test_a_score_that_is_no_number_is_seen_whatever_rounding_allows(monkeypatch):
    altered("greedy_gnorm", monkeypatch, lambda scores, *_: scores * torch.nan)
    assert len([failure for failure in draws(0, 3) if "gnorm_scores is off by inf" in failure]) == 3


def test_a_hook_left_behind_and_a_flag_altered_are_seen(monkeypatch):
    def leave(scores, model, _):
        model.register_forward_hook(lambda *_: None)
        return scores

    altered("greedy_gnorm", monkeypatch, leave)
    assert len([f for f in draws(0, 2) if "gnorm_scores does not leave the model as it was" in f]) == 2

    def freeze(scores, model, _):
        model.requires_grad_(False)
        return scores

    altered("greedy_gnorm", monkeypatch, freeze)
    assert any("does not leave the model as it was" in failure for failure in draws(0, 4))


def test_a_draw_is_the_same_every_time():
    for seed in range(8):
        first, second = fuzz.draw(seed), fuzz.draw(seed)
        assert str(first) == str(second)
        assert fuzz.same(fuzz.snapshot(first.model), fuzz.snapshot(second.model))
        for batch, other in zip(first.batches, second.batches, strict=True):
            assert fuzz.same(batch, other)
