"""The screen of ``epochmeter watch``: a run that goes on, at most 60 columns wide."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from profiler.records.plain_text import printable
from profiler.report.layout import CPU, GPU, MEMORY, Column, Fitted, duration, shortened, words
from profiler.report.progress import LEAST_SHARE, Progress, hanging, left, pace, progress, where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run


LONGEST = 30  # letters of a phase


def screen(run: Run, now_unix_ns: int | None = None) -> RenderableType:
    """Return the lines to show now."""
    seen = progress(run, now_unix_ns)
    parts: list[RenderableType] = [
        Text.assemble((printable(run.name), "bold"), f"  {run.id}"),
        Text(f"{run.state} for {duration(run.duration_ns / 1e9 + seen.age_s)}" if run.state == "running" else run.state),
    ]
    words = [*where(seen), *([] if seen.rate is None else [pace(seen)])]
    words += left(seen)
    parts.append(Text(", ".join(words) or "no pass yet"))
    parts += [Text(printable(line), style="bold red" if seen.is_stalled else "") for line in hanging(run, seen)]
    if seen.recent or seen.whole:
        parts.append(_shares(seen))
    parts += [Text(line, style="dim") for line in _readings(seen)]
    if run.state == "running":
        parts.append(Text(f"as of {duration(seen.age_s)} ago", style="dim"))
    return Group(*parts)


def _shares(seen: Progress) -> RenderableType:
    names = sorted({*seen.recent, *seen.whole}, key=lambda one: -max(seen.recent.get(one, 0), seen.whole.get(one, 0)))
    shown = [name for name in names if max(seen.recent.get(name, 0.0), seen.whole.get(name, 0.0)) >= LEAST_SHARE]
    return Fitted(
        words(seen.stage, [shortened(printable(name), LONGEST) for name in shown]),
        *(
            Column(head, ["" if name not in found else f"{found[name]:.0%}" for name in shown])
            for head, found in (("last minute", seen.recent), ("whole run", seen.whole))
        ),
    )


def _readings(seen: Progress) -> list[str]:
    words = []
    if CPU in seen.readings:
        words.append(f"CPU {seen.readings[CPU]:.0%}")
    if MEMORY in seen.readings:
        words.append(f"memory {seen.readings[MEMORY] / 2**30:.2f} GiB")
    lines = [", ".join(words)] if words else []
    gpus = sorted(key.rpartition(" ")[2] for key in seen.readings if key.startswith(f"{GPU} gpu-"))
    for gpu in gpus:
        memory = seen.readings.get(f"hw.gpu.memory.usage {gpu}")
        used = "" if memory is None else f", {memory / 2**30:.1f} GiB"
        lines.append(f"{gpu} {seen.readings[f'{GPU} {gpu}']:.0%}{used}")
    return lines
