"""Claims C2, C3, C4 and C6, on the raw bytes that a server on loopback received."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from profiler import Phase, Profiler
from profiler.storage.run_log import run_paths
from support.messages import texts
from support.processes import PATIENT, epochmeter, python
from support.sinks import Received, Sink


def trained(sink: Sink) -> str:
    with Profiler("a run", exporter="otlp", settings={"otlp_endpoint": sink.url}, interval=0.02) as prof:
        for _ in prof.epochs(3):
            for _ in prof.train(range(20), samples=8):
                with prof.phase(Phase.FORWARD), prof.phase("my own"):
                    pass
            list(prof.validate(range(3)))
        list(prof.infer(range(5)))
    return prof.summary.id


# ---- C2: every text on the wire is in the printed vocabulary -------------------------------------------------------


def outside_vocabulary(received: Received) -> set[str]:
    printed = epochmeter("telemetry", "schema", "--json").json
    found = set(texts(ExportMetricsServiceRequest.FromString(received.content))) - set(printed["vocabulary"])
    patterns = printed["random"].values()
    return {text for text in found if not any(re.fullmatch(pattern, text) for pattern in patterns)}


def test_wire_texts_are_in_printed_vocabulary(sink: Sink) -> None:
    trained(sink)
    assert outside_vocabulary(sink.received[-1]) == set()


def test_unlisted_text_would_be_seen(sink: Sink) -> None:
    trained(sink)
    request = ExportMetricsServiceRequest.FromString(sink.received[-1].content)
    request.resource_metrics[0].scope_metrics[0].metrics[0].description = "secret"
    changed = Received("", {}, request.SerializeToString())
    assert outside_vocabulary(changed) == {"secret"}


def test_the_headers_are_those_that_are_printed(sink: Sink) -> None:
    trained(sink)
    printed = epochmeter("telemetry", "schema", "--json").json["request"]["headers"]
    headers = sink.received[-1].headers
    assert {name: headers[name] for name in printed} == printed
    assert set(headers) - set(printed) <= {"host", "content-length", "connection"}


# ---- C3: other people, the same measurements: the same bytes -------------------------------------------------------

TWIN = """
import random, sys, time
random.seed(sys.argv[2])
from functools import partial
from profiler.measure import hot_path
from profiler.measure import timer as timing
from profiler import Profiler
from profiler.measure import clocks
from profiler.session import session
from profiler.records.readings import Fact, MetricSpec, Reading, Sample
from profiler.hardware.sampler import Sampler
from profiler.testing import FakeClock
SPEC = MetricSpec("process.memory.usage", "By", "updowncounter", "")
class Fixed:
    name, specs = "fixed", (SPEC,)
    def start(self): pass
    def facts(self): return (Fact("cpu", "family", lambda: "AMD EPYC"), Fact("cpu", "logical_cores", lambda: 8))
    def close(self): pass
    def readings(self): return (Reading((SPEC,), lambda: [Sample(SPEC, 123_456_789)]),)
clock = FakeClock(1_000_000)
clocks.host_clock = clock
hot_path.use_clock(clock)
time.time_ns = lambda: 1_790_000_000_000_000_000
time.thread_time_ns = lambda: 0
session.Sampler = partial(Sampler, probes=("fixed",), load=lambda name: Fixed())
with Profiler(sys.argv[2], exporter="otlp", settings={"otlp_endpoint": sys.argv[1]}) as prof:
    for _ in prof.epochs(2):
        for _ in prof.train([sys.argv[2]] * 5, samples=4):
            with prof.phase("forward"), prof.phase(sys.argv[2]):
                clock.pass_ms(7)
        prof.session.sampler.tick()
"""


def test_same_measurements_send_same_bytes(sink: Sink, tmp_path: Path) -> None:
    bodies = []
    for user in ("ann", "bob"):
        home = tmp_path / user / "a home"
        home.mkdir(parents=True)
        script = home / f"{user}.py"
        script.write_text(TWIN)
        environment = {"HOME": str(home), "USER": user, "LOGNAME": user, "EPOCHMETER_HOME": str(home / "kept"), user: user}
        done = subprocess.run(
            [sys.executable, script, sink.url, user],
            cwd=home,
            env={**os.environ, **PATIENT, **environment},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        body = sink.received[-1].content
        found = [text for text in texts(ExportMetricsServiceRequest.FromString(body)) if re.fullmatch("[0-9a-f]{12}", text)]
        assert len(found) == 1
        bodies.append(body.replace(found[0].encode(), b"0" * 12))  # the one field that is drawn at random
    assert bodies[0] == bodies[1]
    first, second = ({**received.headers, "content-length": ""} for received in sink.received)
    assert first == second  # an id drawn at random is compressed a little better or worse
    assert b"custom" in bodies[0]


# ---- C4: no identifier leaves, raw or derived ----------------------------------------------------------------------

CANARIES = {
    name: f"canary-{name}-7f3a"
    for name in (
        *("host", "user", "home", "cwd", "argument", "remote", "branch", "exception", "model", "data", "run", "phase"),
        *("uuid", "serial", "gpu", "brand", "variable", "function"),
    )
}
LEAKY = """
import sys, time
from profiler.testing import FakeGpu, FakeNvml
class Nvml(FakeNvml):
    asked = []
    def nvmlDeviceGetUUID(self, handle): self.asked.append("uuid"); return "canary-uuid-7f3a"
    def nvmlDeviceGetSerial(self, handle): self.asked.append("serial"); return "canary-serial-7f3a"
sys.modules["pynvml"] = nvml = Nvml(FakeGpu({"nvmlDeviceGetName": "NVIDIA H100 canary-gpu-7f3a"}))
from profiler import Profiler
Model = type("canary-model-7f3a", (), {})
class Data(list):
    pass
Data.__name__ = Data.__qualname__ = "canary-data-7f3a"
def work(x):
    return x
work.__name__ = "canary-function-7f3a"
with Profiler("canary-run-7f3a", exporter="otlp", settings={"otlp_endpoint": sys.argv[1]}, interval=0.02) as prof:
    model = Model()
    work = prof.inference(work)
    for _ in prof.epochs(3):
        for x in prof.train(Data([1, 2, 3])):
            with prof.phase("canary-phase-7f3a"):
                work(x)
        time.sleep(0.2)  # the probes look at the machine beside the loop
    assert nvml.asked == []
    raise RuntimeError("canary-exception-7f3a")
"""


def derived(canary: str) -> dict[str, bytes]:
    """Return the forms in which a text may be hidden: eight, and the bare digests."""
    raw = canary.encode()
    return {
        "raw": raw,
        "md5": hashlib.md5(raw).hexdigest().encode(),  # noqa: S324
        "sha1": hashlib.sha1(raw).hexdigest().encode(),  # noqa: S324
        "sha256": hashlib.sha256(raw).hexdigest().encode(),
        "uuid5 dns": str(uuid.uuid5(uuid.NAMESPACE_DNS, canary)).encode(),
        "uuid5 url": str(uuid.uuid5(uuid.NAMESPACE_URL, canary)).encode(),
        "base64": base64.b64encode(raw).rstrip(b"="),
        "hex": raw.hex().encode(),
        "url": urllib.parse.quote(canary.replace("-", "/"), safe="").encode(),
        "md5 bytes": hashlib.md5(raw).digest(),  # noqa: S324
        "sha256 bytes": hashlib.sha256(raw).digest(),
    }


def leaks(data: bytes, canaries: Iterable[str]) -> set[tuple[str, str]]:
    lower = data.lower()
    return {
        (canary, form)
        for canary in canaries
        for form, found in derived(canary).items()
        if found in data or found.lower() in lower
    }


@pytest.mark.parametrize("form", derived("x"))
def test_the_search_finds_every_form(form: str) -> None:
    canary = CANARIES["host"]
    assert (canary, form) in leaks(b"before" + derived(canary)[form] + b"after", CANARIES.values())


def everything(sink: Sink) -> bytes:
    return b"".join(f"{r.path} {r.headers} ".encode() + r.body + r.content for r in sink.received)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Make a home and a working folder full of canaries, and return their environment."""
    home = tmp_path / CANARIES["home"]
    folder = home / CANARIES["cwd"]
    folder.mkdir(parents=True)
    git = ["git", "-c", f"init.defaultBranch={CANARIES['branch']}"]
    subprocess.run([*git, "init", "-q"], cwd=folder, check=True)
    subprocess.run([*git, "remote", "add", "origin", f"https://{CANARIES['remote']}/x.git"], cwd=folder, check=True)
    (folder / "train.py").write_text(LEAKY)
    mine = dict.fromkeys(("USER", "LOGNAME", "USERNAME", "HOSTNAME", "CONDA_DEFAULT_ENV", "WANDB_NAME"), CANARIES["user"])
    variables = dict.fromkeys(("SLURM_JOB_NAME", "KUBERNETES_SERVICE_HOST", "CI", "SM_TRAINING_ENV"), CANARIES["variable"])
    resource = {"OTEL_RESOURCE_ATTRIBUTES": f"host.name={CANARIES['host']}", "OTEL_SERVICE_NAME": CANARIES["variable"]}
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"x-key={CANARIES['variable']}"}
    return folder, {"HOME": str(home), "EPOCHMETER_HOME": str(home / "kept"), **mine, **variables, **resource, **headers}


def test_no_canary_leaves(sink: Sink, place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    done = subprocess.run(
        [sys.executable, "train.py", sink.url, CANARIES["argument"]],
        cwd=folder,
        env={**os.environ, **PATIENT, **environment},
        capture_output=True,
        text=True,
    )
    assert "RuntimeError: canary-exception-7f3a" in done.stderr
    assert len(sink.received) == 1
    assert b"H100" in sink.received[0].content  # the fake GPU was read
    assert leaks(everything(sink), CANARIES.values()) == set()
    (path,) = run_paths(Path(environment["EPOCHMETER_HOME"]) / "runs")
    kept = {canary for canary, _ in leaks(path.read_bytes(), CANARIES.values())}  # the names that a user gave stay here
    assert kept == {CANARIES[name] for name in ("run", "phase", "gpu")}


INNER = (
    f"hostname {CANARIES['host']} && ip link set lo up && cp /proc/cpuinfo $1/cpuinfo"
    f" && sed -i 's/^model name.*/model name\\t: {CANARIES['brand']} EPYC/' $1/cpuinfo && mount --bind $1/cpuinfo /proc/cpuinfo"
    ' && shift && exec "$@"'
)
SINK = """
import http.server, subprocess, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with open(sys.argv[1], "wb") as file:
            file.write(str(self.headers).encode() + b"\\0BODY\\0" + body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *arguments):
        pass
import platform, socket
assert platform.node() == socket.gethostname() == "canary-host-7f3a"
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
subprocess.run([sys.executable, "train.py", f"http://127.0.0.1:{server.server_port}", "canary-argument-7f3a"])
"""


@pytest.mark.slow
def test_no_canary_leaves_the_machine(place: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Host name and CPU brand too, in namespaces where they can be set."""
    namespaces = ["unshare", "-rnmu", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*namespaces, f"hostname x && {INNER}", "sh", tmp_path, "true"]).returncode
    ):
        pytest.skip("this system allows no namespaces in which the host has another name and CPU")
    folder, environment = place
    received = tmp_path / "received"
    command = [*namespaces, INNER, "sh", tmp_path, sys.executable, "-c", SINK, received]
    subprocess.run(command, cwd=folder, env={**os.environ, **PATIENT, **environment}, check=True, capture_output=True)
    headers, _, body = received.read_bytes().partition(b"\0BODY\0")
    found = Received("", {"content-encoding": "gzip"}, body)
    assert b"AMD EPYC" in found.content  # the CPU's brand was read
    assert leaks(headers + found.content, CANARIES.values()) == set()


# ---- C6: the preview is what is sent -------------------------------------------------------------------------------


def test_preview_and_log_equal_arrived_bytes(sink: Sink) -> None:
    run = trained(sink)
    arrived = hashlib.sha256(sink.received[-1].content).hexdigest()
    previewed = epochmeter("telemetry", "preview", run, "--json").json
    assert previewed["sha256"] == arrived
    assert base64.b64decode(previewed["body"]) == sink.received[-1].content
    raw = subprocess.run([sys.executable, "-m", "profiler.cli", "telemetry", "preview", "--bytes"], capture_output=True)
    assert raw.stdout == sink.received[-1].content
    assert {"resourceMetrics"} == set(previewed["content"])
    (logged,) = epochmeter("telemetry", "log", "--json").json
    assert (logged["sha256"], logged["destination"], logged["answer"]) == (arrived, f"{sink.url}/v1/metrics", "HTTP 200")
    assert base64.b64decode(logged["body"]) == sink.received[-1].content


def test_the_preview_of_other_measurements_is_another(sink: Sink) -> None:
    first, second = trained(sink), trained(sink)
    hashes = [epochmeter("telemetry", "preview", run, "--json").json["sha256"] for run in (first, second)]
    assert len(set(hashes)) == 2
    assert hashes[0] == hashlib.sha256(sink.received[0].content).hexdigest()


@pytest.mark.slow
def test_demo_preview_equals_sent_bytes(sink: Sink) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    script = "from profiler.session.demo import prepare, train\nfrom profiler import Profiler\ns = prepare()\n"
    script += "with Profiler('demo', epochs=3) as prof: train(s, 3, prof)"
    python("-c", script, EPOCHMETER_EXPORTER="otlp", EPOCHMETER_OTLP_ENDPOINT=sink.url, timeout=120)
    arrived: Any = hashlib.sha256(sink.received[-1].content).hexdigest()
    assert epochmeter("telemetry", "preview", "--json").json["sha256"] == arrived
