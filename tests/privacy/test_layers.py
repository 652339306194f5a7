"""Every layer of the gate is held by a test: each is taken out in turn, and a test must fail."""

from __future__ import annotations

import pytest

from support import remove_layers


@pytest.mark.proof
@pytest.mark.timeout(900)  # five minutes on a slow machine
def test_every_removal_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert remove_layers.main() == 0, capsys.readouterr().out
