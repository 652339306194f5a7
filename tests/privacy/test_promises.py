"""`docs/data-collection.md`: every promise has its test, and those that no other file has are here."""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path

import pytest

from support.package_author import HOST, OUTSIDE, choose, counted, metrics
from support.processes import epochmeter, python
from support.sinks import Sink

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test_that_there_is() -> None:
    rows = [line for line in (ROOT / "docs" / "data-collection.md").read_text("utf-8").splitlines() if line.startswith("| ")][
        1:
    ]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for file, test in named:
            functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))) if hasattr(node, "name")}
            assert test in functions, f"{file}::{test}"


def test_settings_in_python_and_for_later_sessions(home: Path) -> None:
    def session(script: str) -> str:
        return python("-c", f"from profiler import settings\n{script}").out

    assert "sync = True  (default)" in session("print(settings)")
    session("settings.update(sync=False)\nsettings.update({'retention_days': 7})")
    later = session("print(settings)\nprint(settings['sync'], dict(settings)['retention_days'])")
    assert "sync = False  (file)" in later and later.endswith("False 7\n")
    session("settings.reset()")
    assert session("print(settings['sync'], settings['retention_days'])") == "False 90\n"  # an explicit "off" stays
    session("settings.update(sync=True)")
    assert session("print(settings['sync'])") == "True\n"


EVERYTHING = (
    HOST
    + """
telemetry.feature("export")
with telemetry.profiler("x") as prof:
    list(prof.train(range(20)))
try:
    with telemetry.guard():
        raise KeyError("secret")
except KeyError:
    telemetry.close()
"""
)


def test_one_switch_stops_everything(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url, crash_reports=True)
    assert python("-c", EVERYTHING, sink.url, **OUTSIDE).code == 0
    assert sorted(received.path for received in sink.received) == ["/api/42/envelope/", "/v1/metrics", "/v1/metrics"]
    sink.received.clear()
    sink.status = 503
    python("-c", EVERYTHING, sink.url, **OUTSIDE)  # all of it waits
    assert len(list((home / "outbox" / "waiting").iterdir())) == 3
    sink.received.clear()
    sink.status = 200
    assert epochmeter("settings", "sync=false").code == 0
    assert list((home / "outbox" / "waiting").iterdir()) == []
    assert python("-c", EVERYTHING, sink.url, **OUTSIDE).code == 0
    epochmeter("telemetry", "flush")
    assert sink.received == []
    epochmeter("settings", "sync=true")
    epochmeter("telemetry", "flush")
    assert sink.received == []  # and what was measured meanwhile does not follow later


def test_ten_thousand_uses_look_like_ten(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url)
    for times in (10, 10_000):
        work = f"for _ in range({times}):\n    telemetry.feature('export')\ntelemetry.close()"
        python("-c", f"{HOST}\n{work}", sink.url, **OUTSIDE)
    few, many = metrics(sink)
    assert (counted(few), counted(many)) == ({("features", "export"): 10}, {("features", "export"): 10_000})
    assert len(few.content) == len(many.content)


IMAGES = """
import sys
import numpy, torch
from sklearn.datasets import load_digits
from profiler import Profiler
data = load_digits()
x, y = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with Profiler("digits", exporter="otlp", settings={"otlp_endpoint": sys.argv[1]}) as prof:
    prof.attach(model, optimizer)
    for _ in prof.epochs(2):
        for images, labels in prof.train(loader):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
    for images, labels in prof.infer(loader):
        model(images)
"""


@pytest.mark.slow
def test_no_image_data_is_sent_or_kept(sink: Sink, home: Path) -> None:
    """Not a row of an image that has more than two kinds of pixels, in any form that it could be written in."""
    pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    assert python("-c", IMAGES, sink.url, timeout=110).code == 0
    everything = b"".join(received.content for received in sink.received)
    everything += b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"epochmeter.stage.samples" in everything
    rows = {tuple(row) for image in datasets.load_digits().images[:200] for row in image if len(set(row)) > 3}
    assert len(rows) > 500
    forms = [form for row in rows for form in _forms(row)]
    assert not [form for form in forms if form in everything]
    for form in _forms(next(iter(rows))):  # each would be found
        (home / "canary").write_bytes(b"before" + form + b"after")
        assert [found for found in forms if found in (home / "canary").read_bytes()]


def _forms(row: tuple[float, ...]) -> list[bytes]:
    import numpy

    raw = [numpy.array(row, dtype=kind).tobytes() for kind in ("uint8", "float32", "float64")]
    whole = [int(pixel) for pixel in row]
    texts = [json.dumps(whole), json.dumps(list(row)), " ".join(map(str, whole)), ",".join(map(str, whole))]
    return [*raw, *(base64.b64encode(entry)[:-4] for entry in raw[1:]), *(text.encode() for text in texts)]
