"""The suite catches what is planted in the code."""

from __future__ import annotations

import pytest

from tests.planted.plant import copy_to, faults, main, plant


@pytest.mark.timeout(60)
def test_every_fault_can_still_be_planted(tmp_path_factory: pytest.TempPathFactory) -> None:
    for fault in faults([]):
        tree = tmp_path_factory.mktemp("tree")
        copy_to(tree)
        assert plant(fault, tree) is None, fault.name


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    status = main([])
    assert status == 0, capsys.readouterr().out
