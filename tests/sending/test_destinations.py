"""Where measurements go: the standard variables, our own settings, and what belongs to which."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.util import parse_url

from profiler import Profiler
from profiler.config.address import known_by, parts_of, shown
from profiler.config.resolve import resolve
from profiler.config.schema import check_value
from profiler.errors import SettingsError
from profiler.sending.destination import destination, in_clear, in_words
from support.processes import epochmeter
from support.sinks import Sink

OTLP = "OTEL_EXPORTER_OTLP_"


def found(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str] | None = None, **chosen: Any) -> dict[str, Any]:
    for name, value in (variables or {}).items():
        monkeypatch.setenv(name, value)
    return destination(resolve({"exporter": "otlp", **chosen}))


@pytest.mark.parametrize(
    ("variables", "chosen", "address", "protocol"),
    [
        ({}, {}, "http://localhost:4318/v1/metrics", "http/protobuf"),
        ({}, {"otlp_protocol": "grpc"}, "http://localhost:4317", "grpc"),
        ({}, {"otlp_endpoint": "https://c:1"}, "https://c:1/v1/metrics", "http/protobuf"),
        ({}, {"otlp_endpoint": "https://c:1/"}, "https://c:1/v1/metrics", "http/protobuf"),
        ({}, {"otlp_endpoint": "https://c:1/v1/metrics"}, "https://c:1/v1/metrics", "http/protobuf"),
        ({}, {"otlp_endpoint": "https://c:1/tenant"}, "https://c:1/tenant/v1/metrics", "http/protobuf"),
        ({}, {"otlp_endpoint": "https://c:1", "otlp_protocol": "grpc"}, "https://c:1", "grpc"),
        ({"ENDPOINT": "http://e:2"}, {}, "http://e:2/v1/metrics", "http/protobuf"),
        ({"ENDPOINT": "http://e:2", "METRICS_ENDPOINT": "http://m:3/x"}, {}, "http://m:3/x", "http/protobuf"),
        ({"ENDPOINT": "http://e:2"}, {"otlp_endpoint": "http://c:1"}, "http://c:1/v1/metrics", "http/protobuf"),
        ({"PROTOCOL": "grpc"}, {}, "http://localhost:4317", "grpc"),
        ({"PROTOCOL": "grpc", "METRICS_PROTOCOL": "http/protobuf"}, {}, "http://localhost:4318/v1/metrics", "http/protobuf"),
        ({"PROTOCOL": "grpc"}, {"otlp_endpoint": "http://c:1"}, "http://c:1/v1/metrics", "http/protobuf"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "c:4317"}, {}, "https://c:4317", "grpc"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "c:4317", "INSECURE": "true"}, {}, "http://c:4317", "grpc"),
        ({"ENDPOINT": ""}, {}, "http://localhost:4318/v1/metrics", "http/protobuf"),
    ],
)
def test_the_address(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], chosen: dict[str, Any], address: str, protocol: str
) -> None:
    told = found(monkeypatch, {OTLP + name: value for name, value in variables.items()}, **chosen)
    assert (told["address"], told["protocol"]) == (address, protocol)


def test_standard_variables_give_headers_timeout_and_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        *(
            ("HEADERS", "a=1"),
            ("METRICS_HEADERS", "Api-Key=k%3D1, b=2"),
            ("TIMEOUT", "3.5"),
            ("COMPRESSION", "none"),
        ),
        *(("CERTIFICATE", "ca"), ("CLIENT_CERTIFICATE", "me"), ("CLIENT_KEY", "key")),
    }
    told = found(monkeypatch, {OTLP + name: value for name, value in names})
    assert told["headers"] == {"api-key": "k=1", "b": "2"}
    assert (told["timeout"], told["compression"]) == (3.5, "none")
    assert (told["certificate"], told["client_certificate"], told["client_key"]) == ("ca", "me", "key")


def test_what_belongs_to_another_source_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HEADERS", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    told = found(monkeypatch, {f"{OTLP}{name}": "a=foreign" for name in names}, otlp_endpoint="https://c:1")
    assert "foreign" not in str(told)
    monkeypatch.setenv("EPOCHMETER_OTLP_HEADERS", "a=own")
    assert found(monkeypatch, otlp_endpoint="https://c:1")["headers"] == {"a": "own"}
    told = found(monkeypatch, otlp_certificate="own.pem")
    assert "own" not in str(told)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (f"{OTLP}ENDPOINT", "collector:4318", "starts with http"),
        (f"{OTLP}ENDPOINT", "https://me:secret-token@c", "as a header in OTEL_EXPORTER_OTLP_HEADERS"),
        (f"{OTLP}ENDPOINT", "https://c:99999/secret-token", "a port from 1"),
        (f"{OTLP}PROTOCOL", "http/json", "takes one of http/protobuf, grpc"),
        (f"{OTLP}TIMEOUT", "soon", "number of seconds"),
        (f"{OTLP}TIMEOUT", "-1", "number of seconds"),
        (f"{OTLP}COMPRESSION", "zstd", "gzip or none"),
        (f"{OTLP}HEADERS", "secret-token", "key=value"),
        (f"{OTLP}HEADERS", "a\u00e9=secret-token", "key=value"),
        (f"{OTLP}HEADERS", "a=secret-token%0d%0aevil: 1", "no header can have"),
    ],
)
def test_what_cannot_be_used_is_said_without_secrets(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as raised:
        found(monkeypatch, {name: value})
    assert name in str(raised.value) and "secret-token" not in str(raised.value)


HOSTILE = [
    *("http://evil.test:18081\\@127.0.0.1", "https://evil.test\\@trusted.example", "https://evil.test\\.trusted.example/"),
    *("https://trusted.example\x00.evil", "https://h/\x1b[2K\rfoo", "https://h/a b", "http://[::1]:80\\@x", "https://h/a\tb"),
    *("https://trusted.example#@evil.test", "https://trusted.example?@evil.test", "https://h/?key=secret", "https://h/#x"),
    *(
        "https://me:secret@h",
        "https://me@h/x",
        "https://h/$(id)",
        "https://h/`id`",
        "https://h/'x'",
        'https://h/"x"',
        "https://h/x\n",
    ),
    *(
        "https://h/%2e%2e/x",
        "https://h/../x",
        "https://h/./x",
        "https://h/x/..",
        "https://h/;x",
        "https://h/<x>",
        "https://h/x|y",
    ),
    *(
        "https://h\u00e4.example",
        "https://h/\u202ex",
        "https://h:0",
        "https://h:65536",
        "https://h:080",
        "https://h:",
        "https://",
    ),
    *("http://127.1", "http://2130706433", "http://0", "http://0x7f.1", "http://127.999.999.999", "http://[::g]"),
    *("https:///x", "https://-/x y", "https://[::1", "https://[g]/", "https://h:1:2", "https://.h", "HTTPS://h", " https://h"),
]


@pytest.mark.parametrize("key", ["otlp_endpoint", "ga_endpoint"])
@pytest.mark.parametrize("address", HOSTILE)
def test_address_outside_the_grammar_is_refused(key: str, address: str) -> None:
    with pytest.raises(SettingsError) as raised:
        check_value(key, address)
    assert "secret" not in str(raised.value) and str(raised.value).isprintable()
    assert parts_of(address) is None and shown(address) == "an address that cannot be shown"


letters = st.text(st.characters(codec="utf-8"), max_size=8)
around = st.sampled_from(
    ["http://", "https://", "/", "//", ":", "@", "\\", "?", "#", "[", "]", "::1", ".", "..", "%40", "a", "80"]
)


@hypothesis.settings(max_examples=500, deadline=None)
@given(st.lists(around | letters, max_size=8).map("".join))
def test_every_parser_reads_the_same_host(text: str) -> None:
    address = text if text.startswith("http") else f"http://{text}"
    parts = parts_of(address)
    if parts is None:
        return
    import requests

    other, third = urlsplit(address), parse_url(address)
    assert (other.hostname, other.port, other.username) == (parts.host.strip("[]").lower(), parts.port, None)
    assert ((third.host or "").strip("[]").lower(), third.port, third.auth) == (other.hostname, parts.port, None)
    prepared = urlsplit(str(requests.Request("POST", address).prepare().url))
    assert (prepared.hostname, prepared.port, prepared.path) == (other.hostname, other.port, other.path or "/")


def test_user_names_are_refused_with_the_cure() -> None:
    with pytest.raises(SettingsError, match="give them as a header in EPOCHMETER_OTLP_HEADERS"):
        check_value("otlp_endpoint", "https://me:secret@h")
    with pytest.raises(SettingsError, match="EPOCHMETER_GA_API_SECRET"):
        check_value("ga_endpoint", "https://h/?api_secret=secret")


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("https://c:1/v1/metrics", "https://c:1/v1/metrics"),
        ("http://[::1]:4318/v1/metrics", "http://[::1]:4318/v1/metrics"),
        ("https://c/TOKEN123/otlp/v1/metrics", "https://c/.../otlp/v1/metrics"),
        ("https://c/api/42/envelope/", "https://c/api/42/envelope/"),
        ("https://c/api/v1/otlp/secret", "https://c/api/v1/otlp/..."),
    ],
)
def test_secrets_of_a_path_are_not_shown(address: str, seen: str) -> None:
    assert shown(address) == seen
    assert known_by(address).partition("#")[0] == seen
    assert (known_by(address) == seen) is (address == seen)


def test_two_hidden_paths_are_two_destinations() -> None:
    assert known_by("https://c/one/x") != known_by("https://c/two/x")


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "TE",
        "upgrade",
        "content-encoding",
        "grpc-timeout",
        "content_length",
        "forwarded",
    ],
)
def test_framing_headers_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable, chosen in ((f"{OTLP}HEADERS", {}), ("EPOCHMETER_OTLP_HEADERS", {"otlp_endpoint": "https://c"})):
        with pytest.raises(SettingsError, match="is not yours to set"):
            found(monkeypatch, {variable: f"{name}=1"}, **chosen)


def test_headers_in_clear_get_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHMETER_OTLP_HEADERS", "authorization=Bearer%20x")
    far = found(monkeypatch, otlp_endpoint="http://collector.test:4318")
    assert in_clear(far) == (
        "the headers for http://collector.test:4318/v1/metrics go over the network in clear, and may hold a password; use https://"
    )
    for safe in ("https://collector.test", "http://127.0.0.1:1", "http://localhost", "http://[::1]:1", "http://127.9.9.9"):
        assert in_clear(found(monkeypatch, otlp_endpoint=safe)) == ""
    chosen = {"EPOCHMETER_EXPORTER": "otlp", "EPOCHMETER_OTLP_ENDPOINT": "http://collector.test:4318"}
    assert "go over the network in clear" in epochmeter("doctor", **chosen).out


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost.", "[::1]", "127.9.9.9", "[::ffff:127.0.0.1]"])
def test_no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert found(monkeypatch, otlp_endpoint=f"http://{host}:4318")["proxies"] == {}
    assert found(monkeypatch, otlp_endpoint="http://far.test")["proxies"]["http"] == "http://127.0.0.1:1"
    monkeypatch.setenv("no_proxy", "far.test")
    assert found(monkeypatch, otlp_endpoint="http://far.test")["proxies"] == {}


def test_proxy_gets_nothing_meant_for_here(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sink.url}) as prof:
        list(prof.train(range(3)))
    assert [received.path for received in sink.received] == ["/v1/metrics"]


def test_proxy_of_far_hosts_is_used_and_told(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", sink.url)
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": "http://far.test:4318"}) as prof:
        list(prof.train(range(3)))
    assert [received.path for received in sink.received] == ["http://far.test:4318/v1/metrics"]
    chosen = {"EPOCHMETER_EXPORTER": "otlp", "EPOCHMETER_OTLP_ENDPOINT": "http://far.test:4318", "REQUESTS_CA_BUNDLE": "/x"}
    said = epochmeter("doctor", **chosen).out
    assert "goes through the proxy that the environment names for http" in said
    assert "REQUESTS_CA_BUNDLE is set, and not obeyed" in said


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(SettingsError, match="set otlp_client_certificate too"):
        destination(resolve({"exporter": "otlp", "otlp_endpoint": "https://c:1", "otlp_client_key": "key"}))


def test_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_words(resolve({"exporter": "otlp", "otlp_endpoint": "http://c:1"})) == "http://c:1/v1/metrics"
    assert in_words(resolve({"exporter": "prometheus"})) == "http://127.0.0.1:9464/metrics"
    monkeypatch.setenv("EPOCHMETER_GA_API_SECRET", "s")
    assert in_words(resolve({"exporter": "ga", "ga_measurement_id": "G-1"})) == "https://www.google-analytics.com/mp/collect"
