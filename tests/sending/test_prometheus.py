"""The page that Prometheus scrapes: what is on it, that consent is asked at each scrape, and a real server that fetches it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from exporters import sentlog
from exporters.allowlist import metrics as listed
from exporters.measurements import Measured, Snapshot
from exporters.rebuild import rebuild
from exporters.rules import Random
from exporters.sdk_data import histogram_point
from profiler import Phase, Profiler, settings
from profiler.config.folder import Folder
from profiler.records.histogram import Histogram
from profiler.sending.snapshot import histogram_value
from support.exports import a_run, data
from support.processes import can_connect, epochmeter, free_port, wait_for, wait_for_ticks

page = pytest.importorskip("exporters.prometheus", reason="the extra prometheus is not installed")
KIT = Path(__file__).parents[2] / "examples" / "pipeline"


@pytest.fixture
def port() -> int:
    found = free_port()
    settings.update(exporter="prometheus", prometheus_port=found, export_interval=0.1)
    return found


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def shown(outgoing: Any) -> str:
    """Return the page, without a server."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    return b"".join(page.page_of(outgoing)(environ, lambda *_: None)).decode()


def samples(text: str) -> dict[str, float]:
    """``name{labels}``: value."""
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def epoch(prof: Profiler, steps: int = 10) -> None:
    for _ in prof.train(range(steps), samples=4):
        with prof.phase(Phase.FORWARD), prof.phase("secret-phase"):
            pass


# ---- the page ------------------------------------------------------------------------------------------------------


def test_a_running_run_can_be_scraped(port: int) -> None:
    with Profiler("secret-run", interval=0.02) as prof:
        for index in prof.epochs(3):
            epoch(prof)
            if index == 2:
                wait_for_ticks(prof)
                found = samples(scrape(port))
    assert found['epochmeter_stage_steps_total{epochmeter_stage="train"}'] == 20
    assert found["epochmeter_epoch_count_total"] == 2
    assert found['epochmeter_stage_duration_seconds_count{epochmeter_stage="train"}'] == 2
    assert "secret" not in str(found)
    target = next(name for name in found if name.startswith("target_info{"))
    assert f'service_instance_id="{prof.summary.id}"' in target
    with pytest.raises(urllib.error.URLError):
        scrape(port)  # the run is over


def test_histograms_keep_every_count(port: int) -> None:
    text = shown(rebuild(data(a_run()), "prometheus"))
    found = samples(text)
    forward = {
        name: value for name, value in found.items() if "phase_duration" in name and '"forward"' in name and '"false"' in name
    }
    buckets = [value for name, value in forward.items() if "_bucket" in name]
    (count,) = [value for name, value in forward.items() if "_count" in name]
    assert buckets == sorted(buckets) and buckets[-1] == count == 19
    assert "secret" not in text


@pytest.mark.parametrize("seconds", [1e-9, 2.0**-20, 0.25, 0.2500001, 1.0, 3.7, 16_384.0, 20_000.0])
def test_duration_lies_between_its_bounds(seconds: float) -> None:
    made = Histogram()
    made.add([round(seconds * 1e9)])
    point = page._point(histogram_point(histogram_value(made), {}, 0, 1))
    place = point.bucket_counts.index(1)
    assert sum(point.bucket_counts) == 1
    assert place == len(page.BOUNDS) or round(seconds * 1e9) <= round(page.BOUNDS[place] * 1e9)
    assert place == 0 or round(seconds * 1e9) > int(page.BOUNDS[place - 1] * 1e9)


def test_each_scrape_asks_consent(port: int) -> None:
    with Profiler("x", interval=0.02) as prof:
        epoch(prof)
        assert "epochmeter_run_duration_seconds" in scrape(port)
        settings.update(sync=False)

        def closed() -> bool:
            try:
                return "epochmeter" not in scrape(port)
            except urllib.error.HTTPError as error:
                assert error.code == 503
            except (OSError, http.client.HTTPException):
                return True
            return False

        wait_for(closed)


def test_off_means_no_socket(port: int) -> None:
    settings.update(sync=False)
    with Profiler("x") as prof:
        epoch(prof)
        with pytest.raises(urllib.error.URLError):
            scrape(port)


@pytest.fixture
def idle(port: int) -> Iterator[Callable[[int], list[socket.socket]]]:
    """Return what makes that many clients, which connect and say nothing."""
    with contextlib.ExitStack() as stack:
        yield lambda count: [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)
        ]


def test_idle_client_holds_up_nothing(port: int, idle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "CONNECTION_S", 0.3)
    with Profiler("x", interval=0.02) as prof:
        clients = idle(1)
        clients[0].sendall(b"GET /metr")  # and no more of it
        epoch(prof)
        assert "epochmeter" in scrape(port)
        assert clients[0].recv(10) == b""  # cut, after its time
        clients += idle(page.MAX_CONNECTIONS)
        assert "epochmeter" in scrape(port)  # the oldest idle one has made room
        clients += idle(page.MAX_CONNECTIONS)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert all(map(is_cut, clients))
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_off_closes_port_beside_idle_clients(port: int, idle: Any) -> None:
    with Profiler("x", interval=0.02) as prof:
        clients = idle(3)
        epoch(prof)
        settings.update(sync=False)
        wait_for(lambda: not can_connect(port))
        assert all(map(is_cut, clients))
        epoch(prof)
    assert prof.summary.stages["train"]["steps"] == 20


def is_cut(client: socket.socket) -> bool:
    try:
        return client.recv(10) == b""
    except ConnectionResetError:
        return True


def scraped(port: int) -> str:
    try:
        return scrape(port)
    except (OSError, http.client.HTTPException):
        return ""


def test_shown_page_is_logged_once(port: int) -> None:
    settings.update(export_interval=60)
    with Profiler("x", interval=0.02) as prof:
        epoch(prof)
        for _ in range(3):
            scrape(port)
    (entry,) = epochmeter("telemetry", "log", "--json").json
    assert (entry["destination"], entry["answer"]) == (f"http://127.0.0.1:{port}/metrics", "scraped 3 times")
    assert {"resourceMetrics"} == set(entry["content"])


def test_port_in_use_is_reported_and_run_continues(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with Profiler("x") as prof:
            epoch(prof)
    assert "set another prometheus_port" in str(prof.summary.to_dict()["notes"])


def test_other_paths_give_404_without_host_name(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("the host's name was read"))
    with Profiler("x") as prof:
        epoch(prof)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scrape(port, "/secrets")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.headers["server"] == "epochmeter"


def test_rebound_host_name_gets_403(port: int) -> None:
    with Profiler("x") as prof:
        epoch(prof)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Host": f"evil.example:{port}"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)


def test_the_first_time_is_said(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with Profiler("x") as prof:
        epoch(prof)
        scrape(port)
        scrape(port)
    said = capfd.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert f"can be fetched from http://127.0.0.1:{port}/metrics" in said.err


# ---- the names that dashboards and rules use -----------------------------------------------------------------------


def every_metric() -> str:
    """Return a page with a point of every metric that the list names for it."""
    made = Histogram()
    made.add([10**6])
    points = []
    for entry in listed("prometheus"):
        attributes = {name: rule.values[0] for name, rule in entry.attributes.items() if not isinstance(rule, Random)}
        value = histogram_value(made) if entry.kind == "histogram" else 1 if entry.unit.startswith("{") else 10.0
        points.append(Measured(entry.name, entry.kind, value, attributes))
    return shown(rebuild(Snapshot({"service.name": "epochmeter"}, points, 0, 1), "prometheus"))


def names_on_the_page() -> set[str]:
    return {re.split(r"[{ ]", line)[0] for line in every_metric().splitlines() if line and not line.startswith("#")}


def expressions() -> list[str]:
    yaml = pytest.importorskip("yaml")
    dashboard = json.loads((KIT / "dashboard.json").read_text("utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    for name in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((KIT / name).read_text("utf-8"))["groups"]:
            found += [rule["expr"] for rule in group["rules"]]
    return found


def recorded() -> set[str]:
    yaml = pytest.importorskip("yaml")
    groups = yaml.safe_load((KIT / "recording.yml").read_text("utf-8"))["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


@pytest.mark.parametrize("expression", expressions())
def test_every_query_names_metrics_that_exist(expression: str) -> None:
    known = names_on_the_page() | recorded()
    bare = re.sub(r'"[^"]*"', '""', re.sub(r'__name__=~"([^"]*)"', r"\1", expression))
    bare = re.sub(r"\b(by|on|group_left)\s*\([^)]*\)", "", bare).replace("(_ratio)?", "")
    bare = re.sub(r"\{([a-z_]+),", r"\1{", bare)
    bare = re.sub(r"\{([a-z_]+)\}", r"\1", bare)
    named = set(re.findall(r"\b(?:epochmeter[a-z_:]*|(?:hw|process|system|container)_[a-z_]+)\b(?!\s*[=!])", bare))
    assert named, bare
    assert named <= known, named - known


# ---- a real server -------------------------------------------------------------------------------------------------


@pytest.fixture
def prometheus(port: int, tmp_path: Path) -> Iterator[str]:
    """Debian's Prometheus with the kit's own configuration, in which a minute is a second; its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package of that name)")
    for name in ("recording.yml", "alerts.yml"):
        text = re.sub(r"\b(\d+)h\b", lambda hours: f"{int(hours[1]) * 60}m", (KIT / name).read_text("utf-8"))
        (tmp_path / name).write_text(re.sub(r"\b(\d+)m\b", r"\1s", text))
    text = (KIT / "prometheus.yml").read_text("utf-8").replace("15s", "200ms").replace(" 5s", " 200ms")
    text = text.replace("9464", str(port))
    (tmp_path / "prometheus.yml").write_text(text)
    own = free_port()
    command = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{own}"], stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{own}"
        finally:
            process.terminate()
            process.wait(20)


def query(address: str, expression: str) -> list[Any]:
    text = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{text}", timeout=5) as answer:
            told = json.loads(answer.read())
    except (ConnectionError, urllib.error.URLError):
        return []
    assert told["status"] == "success"
    found: list[Any] = told["data"]["result"]
    return found


@pytest.mark.slow
def test_a_real_prometheus_fetches_what_the_run_shows(prometheus: str, home: Path) -> None:
    over = threading.Event()
    prof = Profiler("x", interval=0.05)

    def train() -> None:
        with prof:
            for _ in prof.epochs(1000):
                for _ in prof.train(range(20), samples=4):
                    with prof.phase(Phase.FORWARD):
                        time.sleep(0.001)
                list(prof.validate(range(3)))
                list(prof.infer(range(3)))
                if over.is_set():
                    break

    thread = threading.Thread(target=train)
    thread.start()
    try:
        # a mean of nothing is NaN, until two scrapes have seen different sums
        wait_for(lambda: len(query(prometheus, "epochmeter:step:mean_seconds > 0")) == 3, 40)
        for expression in expressions():
            asked = expression.replace("$job", ".*").replace("$instance", ".*")
            if not asked.startswith("label_values"):
                query(prometheus, asked)
        for needed in ("epochmeter:phase:ratio", "epochmeter:epoch:mean_seconds", "epochmeter:samples:per_second"):
            assert query(prometheus, needed), needed
        both = query(prometheus, '{__name__=~"epochmeter_stage_(steps|time_seconds)_total", epochmeter_stage="train"}')
        (counted,) = query(prometheus, "epochmeter_epoch_count_total")
        (running,) = query(prometheus, 'up{job="epochmeter"}')
    finally:
        over.set()
        thread.join(20)
    assert running["value"][1] == "1"
    assert float(counted["value"][1]) <= len(prof.summary.epochs)
    scraped = {row["metric"]["__name__"]: float(row["value"][1]) for row in both}
    assert (scraped["epochmeter_stage_steps_total"], scraped["epochmeter_stage_time_seconds_total"]) in shown_to_others(home)


@pytest.mark.proof
def test_rules_and_alerts_within_one_epoch(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of one epoch, a minute of which is a second: shares, rates and alerts, and a step that hangs."""
    monkeypatch.setattr("profiler.records.run.STALLED_NS", 10**9)
    done, counted, is_over = 0, [], threading.Event()
    prof = Profiler("hour", interval=0.05, settings={"slice_s": 0.25})

    def batches() -> Iterator[int]:
        while True:
            time.sleep(0.004)
            yield 0

    def train() -> None:
        nonlocal done
        with prof:
            for _ in prof.epochs(1):
                for _ in prof.train(batches(), samples=4):
                    with prof.phase(Phase.FORWARD):
                        time.sleep(0.006)
                        if is_over.is_set():
                            wait_for(lambda: query(prometheus, alert("EpochmeterStalled")), 30)
                            break
                    done += 1
                    counted.append(time.time())

    def alert(name: str) -> str:
        return f'ALERTS{{alertname="{name}", alertstate="firing"}}'

    thread = threading.Thread(target=train)
    thread.start()
    try:
        wait_for(lambda: query(prometheus, alert("EpochmeterInputBound")), 60)
        (waits,) = query(prometheus, 'epochmeter:phase:ratio{epochmeter_phase="data_wait"}')
        (steps,) = query(prometheus, 'increase(epochmeter_stage_steps_total{epochmeter_stage="train"}[5s])')
        (rate,) = query(prometheus, "epochmeter:samples:per_second")
        for expression in expressions():
            shown = not re.search(
                "gpu|power|temperature|inference|epoch_count|epoch:mean|epoch_duration|container|label_values| > ", expression
            )
            asked = expression.replace("$job", ".*").replace("$instance", ".*")
            assert not shown or query(prometheus, asked), expression
        assert not query(prometheus, alert("EpochmeterStalled")) and not query(prometheus, "epochmeter:epoch:mean_seconds > 0")
        own = sum(moment > counted[-1] - 5 for moment in counted)
        whole = done / (counted[-1] - counted[0])
        is_over.set()
        thread.join(60)
    finally:
        is_over.set()
    assert not thread.is_alive()
    assert float(waits["value"][1]) == pytest.approx(0.4, abs=0.06)
    assert float(steps["value"][1]) == pytest.approx(own, rel=0.15)
    assert float(rate["value"][1]) == pytest.approx(4 * whole, rel=0.15)
    assert prof.summary.epochs[0]["stages"][0]["steps"] == done + 1


def shown_to_others(home: Path) -> set[tuple[float, float]]:
    """Return the steps and time of training in every fetched page, from our own log."""
    found = set()
    for sent in sentlog.read(Folder(home / "sent")):
        (resource,) = ExportMetricsServiceRequest.FromString(sent.body).resource_metrics
        metrics = {metric.name: metric.sum.data_points for metric in resource.scope_metrics[0].metrics}
        told = []
        for name in ("epochmeter.stage.steps", "epochmeter.stage.time"):
            points = [point for point in metrics.get(name, ()) if point.attributes[0].value.string_value == "train"]
            told += [point.as_int or point.as_double for point in points]
        if len(told) == 2:
            found.add((float(told[0]), float(told[1])))
    return found
