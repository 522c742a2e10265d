"""Crosses of tests: one entry by all and all by one in every run, all by all in `make soak`."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def one_by_all(*axes: Iterable[Any]) -> list[Any]:
    """Cases for ``pytest.mark.parametrize``: the product of ``axes``, those for the soak that differ from the first of
    each axis in more than one."""
    cases = []
    for case in itertools.product(*map(enumerate, axes)):
        marks = pytest.mark.soak if sum(number > 0 for number, _ in case) > 1 else ()
        cases.append(pytest.param(*(value for _, value in case), marks=marks))
    return cases
