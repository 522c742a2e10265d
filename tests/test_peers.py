"""benchmarks/peers.py: what is said of a tool that is not there, and which rows another tool left."""

import sys

import pytest
import torch

from benchmarks import of_others, peers


def test_a_tool_that_is_not_there_is_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "KEPT", tmp_path)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'PackageNotFoundError: textpruner' >&2\nexit 1\n")
    python.chmod(0o755)
    rows = list(peers.of_other("textpruner", "TextPruner", str(python)))
    assert rows == [{"tool": "TextPruner", "setting": "left out: PackageNotFoundError: textpruner"}]


def test_masks_of_another_tool_become_models(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "KEPT", tmp_path)
    heads, neurons, logits = torch.tensor([[True, False]]), torch.tensor([[True, True, False]]), torch.zeros(1, 2)
    row = {"share": 0.5, "heads": heads, "neurons": neurons, "logits": logits}
    torch.save({"versions": {"textpruner": "1.1"}, "rows": [row]}, tmp_path / "textpruner.pt")
    (subnet,) = peers.of_other("textpruner", "TextPruner", sys.executable)
    assert (subnet.tool, subnet.scorings) == ("TextPruner 1.1", peers.ITERATIONS)
    assert subnet.mask.tolist() == [[True, False, True, True, False]]


def test_rows_that_another_tool_left_are_known_by_all_their_numbers():
    before = torch.tensor([[1.0, 2.0], [1.0, 3.0], [4.0, 5.0]])
    assert of_others._rows_left(before, before[[0, 2]]).tolist() == [True, False, True]
    with pytest.raises(AssertionError, match="another order"):
        of_others._rows_left(before, before[[2, 0]])


def test_a_table_that_was_stopped_goes_on(tmp_path, monkeypatch):
    measured = []
    found = [peers.Subnet("a", "", torch.ones(1, 1), 0), {"tool": "b", "setting": "left out"}]
    monkeypatch.setattr(peers, "KEPT", tmp_path / "partial")
    monkeypatch.setattr(peers.tasks, "load", lambda *_, **__: None)
    monkeypatch.setattr(peers, "subnets", lambda *_: iter(found))
    monkeypatch.setattr(peers.Measured, "row", lambda _, subnet: measured.append(subnet.tool) or {"tool": subnet.tool})
    stopped = peers.peers({})
    assert next(stopped) == {"tool": "a"}
    stopped.close()
    assert list(peers.peers({})) == [{"tool": "a"}, found[1]]
    assert measured == ["a"]
    assert not peers.KEPT.exists()
