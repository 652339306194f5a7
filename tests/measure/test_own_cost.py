"""What a run tells of its own cost."""

from __future__ import annotations

import pytest

from profiler.records.run import EpochRecord
from profiler.records.timing import StageRecord, Timing
from profiler.session import overhead


def timing(count: int, ns: int) -> Timing:
    made = Timing()
    made.steady.add([ns] * count)
    return made


def epoch(step_ns: int) -> EpochRecord:
    """Return 10 steps: each waits, has two phases and the gaps between, and one phase within another."""
    phases = {
        ("data_wait",): timing(11, 5),
        ("after data_wait",): timing(10, 5),
        ("forward",): timing(10, 5),
        ("forward", "attention"): timing(30, 5),
        ("after forward",): timing(10, 5),
    }
    stage = StageRecord("train", steps=10, step=timing(10, step_ns), phases=phases)
    return EpochRecord(0, stages={"train": stage}, phases={("checkpoint",): timing(1, 5)})


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "unit_costs", lambda *, is_cold: (1_000.0, 5_000.0) if is_cold else (100.0, 500.0))


def test_phases_and_steps_count_gaps_do_not() -> None:
    assert overhead.hot_path_ns(epoch(50_000)) == 41 * 100 + 10 * 500


def test_long_steps_find_cold_caches() -> None:
    assert overhead.hot_path_ns(epoch(5_000_000)) == round((41 * 1_000 + 10 * 5_000) * overhead.DISPLACED)


def test_hooked_modules_add_the_cost_of_hooks() -> None:
    known = overhead.hot_path_ns(epoch(50_000))
    assert overhead.hot_path_ns(epoch(50_000), are_modules_hooked=True) == known + 10 * overhead.TORCH_HOOKS_NS


def test_run_without_steps_costs_nothing() -> None:
    assert overhead.hot_path_ns(EpochRecord(None)) == 0


class TestUnitCosts:
    @pytest.fixture(autouse=True)
    def costs(self) -> None:
        """Measure them in truth."""

    @pytest.mark.parametrize("is_cold", [False, True])
    def test_costs_are_measured_here_and_now(self, is_cold: bool) -> None:
        phase_ns, step_ns = overhead.unit_costs(is_cold=is_cold)
        assert 10 < phase_ns < 1_000_000 and 10 < step_ns < 1_000_000
