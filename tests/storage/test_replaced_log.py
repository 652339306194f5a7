"""A log that is replaced by a shorter one while somebody asks whether it is being written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiler.storage import run_log
from profiler.storage.run_log import RunLog, is_being_written
from support.big_run import big_run


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be replaced")
def test_a_log_is_never_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = big_run(2, gpus=1)
    log, is_held = RunLog(tmp_path, run), run_log.is_held
    for epoch in run.epochs:
        log.append(run, epoch)

    def meanwhile(descriptor: int) -> bool:
        monkeypatch.setattr(run_log, "is_held", is_held)
        log.write_anew([log.path.read_bytes()], log.size(), lambda swap: swap())
        return is_held(descriptor)

    monkeypatch.setattr(run_log, "is_held", meanwhile)
    assert is_being_written(log.path)
    log.close()
    assert not is_being_written(log.path)
