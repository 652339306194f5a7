"""The pipeline kit: configurations that their own programs accept, and that fit the list."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
import venv
from pathlib import Path
from typing import Any

import pytest

from exporters.allowlist import CRASH, METRICS, RESOURCE
from exporters.rules import may_be_said
from support.browser import CHROMIUM, browse
from support.deliveries import EXIT, epochs_in
from support.processes import free_port, python, wait_for
from support.sinks import Sink

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
KIT = ROOT / "examples" / "pipeline"
OWN_WORDS = {"epochmeter.label.job", "epochmeter.label.team", "k8s.job.name", "k8s.namespace.name"}  # examples of a user's
DOCS = ROOT / "docs"


def collector() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KIT / "otelcol.yaml").read_text("utf-8"))
    return found


def test_the_collectors_pipelines_name_what_is_configured() -> None:
    config = collector()
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in config["service"]["pipelines"].values():
        for kind in used:
            used[kind] |= set(pipeline[kind])
    assert {kind: set(config[kind]) for kind in used} == used
    assert {"prometheus", "file", "clickhouse"} == used["exporters"]
    assert all(pipeline["processors"][0] == "redaction" for pipeline in config["service"]["pipelines"].values())


def test_collector_filter_agrees_with_list() -> None:
    redaction = collector()["processors"]["redaction"]
    listed = {name for entry in METRICS for name in entry.attributes} | {entry.name for entry in (*RESOURCE, *CRASH)}
    assert set(redaction["allowed_keys"]) - listed == OWN_WORDS and listed <= set(redaction["allowed_keys"])
    assert all(may_be_said(name, "x") for name in OWN_WORDS)
    assert redaction["allow_all_keys"] is False


def test_collector_histograms_have_our_bounds() -> None:
    page = pytest.importorskip("exporters.prometheus")
    (group,) = collector()["processors"]["transform/histograms"]["metric_statements"]
    (statement,) = group["statements"]
    bounds = re.fullmatch(r'convert_exponential_histogram_to_histogram\("upper", \[(.*)\]\)', statement)
    assert bounds is not None
    assert [float(bound) for bound in bounds[1].split(",")] == list(page.BOUNDS)


def test_nothing_listens_beyond_this_machine() -> None:
    text = "".join(path.read_text("utf-8") for path in KIT.iterdir())
    assert set(re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text)) == {"127.0.0.1"}


@pytest.mark.parametrize(("check", "names"), [("config", ["prometheus.yml"]), ("rules", ["recording.yml", "alerts.yml"])])
def test_promtool_accepts_it(check: str, names: list[str]) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    done = subprocess.run([program, "check", check, *(KIT / name for name in names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


RULES = """
rule_files: [{kit}/recording.yml, {kit}/alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'epochmeter_stage_time_seconds_total{{job="j", instance="i", epochmeter_stage="train"}}'
        values: '0+50x120'
      - series: >-
          epochmeter_phase_duration_seconds_sum{{job="j", instance="i", epochmeter_stage="train",
          epochmeter_phase="data_wait", epochmeter_phase_level="top", epochmeter_cold="false"}}
        values: '0+20x120'
      - series: 'epochmeter_step_stalled_seconds{{job="j", instance="i", epochmeter_stage="train"}}'
        values: '0x70 _x50'
      - series: 'epochmeter_step_stalled_seconds{{job="j", instance="i", epochmeter_stage="train", epochmeter_phase="forward"}}'
        values: '_x70 60+60x50'
      - series: 'epochmeter_step_duration_seconds_sum{{job="j", instance="i", epochmeter_stage="train"}}'
        values: '0+60x60 3600+90x60'
      - series: 'epochmeter_step_duration_seconds_count{{job="j", instance="i", epochmeter_stage="train"}}'
        values: '0+60x120'
      - series: 'hw_gpu_utilization{{job="j", instance="i", hw_id="gpu-0"}}'
        values: '0.1x120'
      - series: 'hw_temperature_celsius{{job="j", instance="i", hw_id="gpu-0-die", hw_parent="gpu-0"}}'
        values: '60x120'
      - series: 'epochmeter_run_duration_seconds{{job="j", instance="i"}}'
        values: '0+60x120'
      - series: 'epochmeter_run_duration_seconds{{job="j", instance="over"}}'  # a collector shows its last values for a while
        values: '0+60x60 3600x20'
      - series: 'epochmeter_stage_time_seconds_total{{job="j", instance="over", epochmeter_stage="train"}}'
        values: '0+50x60 3000x20'
      - series: >-
          epochmeter_phase_duration_seconds_sum{{job="j", instance="over", epochmeter_stage="train",
          epochmeter_phase="data_wait", epochmeter_phase_level="top", epochmeter_cold="false"}}
        values: '0+20x60 1200x20'
      - series: 'system_memory_utilization_ratio{{job="j", instance="i", system_memory_state="used"}}'
        values: '0.97x120'
    promql_expr_test:
      - expr: epochmeter:phase:ratio
        eval_time: 60m
        exp_samples:
          - labels: 'epochmeter:phase:ratio{{job="j", instance="i", epochmeter_stage="train", epochmeter_phase="data_wait"}}'
            value: 0.4
          - labels: 'epochmeter:phase:ratio{{job="j", instance="over", epochmeter_stage="train", epochmeter_phase="data_wait"}}'
            value: 0.4
    alert_rule_test:
      - alertname: EpochmeterInputBound
        eval_time: 64m
        exp_alerts:
          - exp_labels: {{severity: warning, job: j, instance: i, epochmeter_stage: train, epochmeter_phase: data_wait}}
            exp_annotations:
              summary: "Training waits 40% of its time for data"
              description: "More loader workers, faster storage or data kept in memory would help run i."
      - alertname: EpochmeterInputBound
        eval_time: 80m
        exp_alerts:
          - exp_labels: {{severity: warning, job: j, instance: i, epochmeter_stage: train, epochmeter_phase: data_wait}}
            exp_annotations:
              summary: "Training waits 40% of its time for data"
              description: "More loader workers, faster storage or data kept in memory would help run i."
      - alertname: EpochmeterStalled
        eval_time: 69m
        exp_alerts: []
      - alertname: EpochmeterStalled
        eval_time: 80m
        exp_alerts:
          - exp_labels: {{severity: critical, job: j, instance: i, epochmeter_stage: train, epochmeter_phase: forward}}
            exp_annotations:
              summary: "No step has ended for 11m 0s, ten times the slowest one or more"
              description: "Run i hangs in train, forward."
      - alertname: EpochmeterSlowerSteps
        eval_time: 110m
        exp_alerts:
          - exp_labels: {{severity: warning, job: j, instance: i, epochmeter_stage: train}}
            exp_annotations:
              summary: "A step takes 1.5s, a quarter more than an hour ago"
              description: "Run i: look for throttling, a fuller disk or another job on the machine."
      - alertname: EpochmeterGpuIdle
        eval_time: 80m
        exp_alerts:
          - exp_labels: {{severity: warning, job: j, instance: i, hw_id: gpu-0}}
            exp_annotations:
              summary: "gpu-0 is busy 10% of the time"
              description: "Run i holds a GPU that it does not use: see where its steps' time goes."
      - alertname: EpochmeterGpuHot
        eval_time: 80m
        exp_alerts: []
      - alertname: EpochmeterMemoryShort
        eval_time: 80m
        exp_alerts:
          - exp_labels: {{severity: warning, job: j, instance: i, system_memory_state: used}}
            exp_annotations:
              summary: "97% of the machine's memory is in use"
              description: "Run i may be ended by the system."
"""


def test_the_rules_say_what_they_should(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    (tmp_path / "tests.yml").write_text(RULES.format(kit=KIT))
    done = subprocess.run([program, "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def rotel_variables() -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of rotel.env, and those of the alternatives at its end."""
    lines = (KIT / "rotel.env").read_text("utf-8").splitlines()
    return tuple(
        dict(line.removeprefix(mark).split("=", 1) for line in lines if line.startswith(f"{mark}ROTEL_")) for mark in ("", "# ")
    )  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("instead", [False, True])
def test_rotel_takes_the_configuration_and_hands_on(sink: Sink, tmp_path: Path, instead: bool) -> None:
    rotel = pytest.importorskip("rotel", reason="the collector's package has no build for this system")
    from support.processes import can_connect

    http, grpc = free_port(), free_port()
    variables, others = rotel_variables()
    variables = {**variables, **(others if instead else {})}
    variables["ROTEL_OTLP_HTTP_ENDPOINT"], variables["ROTEL_OTLP_GRPC_ENDPOINT"] = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
    variables["ROTEL_OTLP_EXPORTER_ENDPOINT"] = variables["ROTEL_OTLP_EXPORTER_ENDPOINT"].replace(
        "http://127.0.0.1:9090", sink.url
    )
    variables["ROTEL_PID_FILE"] = str(tmp_path / "pid")
    program = Path(rotel.__file__).parent / "rotel-agent"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "start"], stdout=log, stderr=log, env={**os.environ, **variables})
        try:
            wait_for(lambda: can_connect(http))
            assert python("-c", EXIT, f"http://127.0.0.1:{http}").code == 0
            if instead:  # no ClickHouse is here: that it starts with this configuration, and takes what it is given
                assert process.poll() is None
                return
            wait_for(lambda: sink.received)
        finally:
            process.terminate()
            process.wait(10)
    assert sink.received[0].path == "/api/v1/otlp/v1/metrics"
    assert set(epochs_in(sink).values()) == {2}


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    dashboard = json.loads((KIT / "dashboard.json").read_text("utf-8"))
    assert dashboard["schemaVersion"] >= 36 and dashboard["uid"] == "epochmeter"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["targets"] and panel["title"]


def test_the_guide_names_the_files_that_there_are() -> None:
    text = (DOCS / "pipeline.md").read_text("utf-8")
    named = set(re.findall(r"examples/pipeline/([a-z_.]+)", text))
    assert named == {path.name for path in KIT.iterdir()}


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_graph_from_pip_and_apt(home: Path, tmp_path: Path) -> None:
    """The first way of docs/pipeline.md: from an empty environment to a graph in a browser; only the ports are others."""
    server = shutil.which("prometheus")
    if server is None:
        pytest.skip("prometheus is not installed (Debian's package of that name)")
    command = installed_command(tmp_path)
    page, port = free_port(), free_port()
    kit = shutil.copytree(KIT, tmp_path / "pipeline")
    config = kit / "prometheus.yml"
    config.write_text(config.read_text("utf-8").replace("127.0.0.1:9464", f"127.0.0.1:{page}"))
    options = [f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    settings = {"EPOCHMETER_EXPORTER": "prometheus", "EPOCHMETER_PROMETHEUS_PORT": str(page), "EPOCHMETER_EXPORT_INTERVAL": "5"}
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen([server, *options], stdout=log, stderr=log)
        training = subprocess.Popen(
            [command, "demo", "--epochs", "1000"], stdout=log, stderr=log, env={**os.environ, **settings}, cwd=tmp_path
        )
        try:
            wait_for(lambda: shares(port).get("forward", 0) > 0, 200)
            found = shares(port)
            assert "backward" in found and sum(found.values()) == pytest.approx(1, abs=0.15), found
            graph = f"http://127.0.0.1:{port}/graph?g0.expr=epochmeter:phase:ratio&g0.tab=0&g0.range_input=5m"
            told = seen_in_browser(graph, tmp_path)
        finally:
            for process in (training, prometheus):
                process.terminate()
                process.wait(30)
    assert "epochmeter:phase:ratio" in told and told.count("this-machine") >= 4, told[-2000:]  # the lines' names
    assert (tmp_path / "graph.png").stat().st_size > 20_000


def installed_command(folder: Path) -> Path:
    """Install what the page names into an empty environment, and return its command."""
    source = folder / "source"
    source.mkdir()
    for name in ("epochmeter", "profiler", "exporters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    venv.create(folder / "env", with_pip=True)
    binaries = folder / "env" / "bin"
    pip = [binaries / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    for what in ("torch", f"{source}[prometheus,demo]"):
        done = subprocess.run([*pip, what], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
    return binaries / "epochmeter"


def shares(port: int) -> dict[str, float]:
    """Return the share of each training phase, as Prometheus knows it."""
    query = f"http://127.0.0.1:{port}/api/v1/query?query=epochmeter:phase:ratio{{epochmeter_stage=%22train%22}}"
    try:
        with urllib.request.urlopen(query, timeout=5) as answer:
            results = json.load(answer)["data"]["result"]
    except OSError:
        return {}
    return {one["metric"]["epochmeter_phase"]: float(one["value"][1]) for one in results}


def seen_in_browser(address: str, folder: Path) -> str:
    """Open a page in a browser, keep a picture of it, and return its elements once its scripts have run."""
    options = (f"--user-data-dir={folder / 'browser'}", "--window-size=1200,900")
    waits = ("--virtual-time-budget=15000", "--timeout=30000")
    browse(address, *options, *waits, f"--screenshot={folder / 'graph.png'}")
    return browse(address, *options, *waits, "--dump-dom").stdout
