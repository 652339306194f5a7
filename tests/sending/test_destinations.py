"""Where measurements go: the standard variables, our own settings, and what belongs to which."""

from __future__ import annotations

from typing import Any

import pytest

from profiler.config.resolve import resolve
from profiler.errors import SettingsError
from profiler.sending.destination import destination, in_words, without_credentials

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
        (f"{OTLP}ENDPOINT", "https://me:secret-token@c:99999", "a port from 1"),
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


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@c:1/v1/metrics?key=secret#x", "https://c:1/v1/metrics"),
        ("http://[::1]:4318/v1/metrics", "http://[::1]:4318/v1/metrics"),
    ],
)
def test_credentials_are_not_shown(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(SettingsError, match="set otlp_client_certificate too"):
        destination(resolve({"exporter": "otlp", "otlp_endpoint": "https://c:1", "otlp_client_key": "key"}))


def test_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_words(resolve({"exporter": "otlp", "otlp_endpoint": "http://me:secret@c:1"})) == "http://c:1/v1/metrics"
    assert in_words(resolve({"exporter": "prometheus"})) == "http://127.0.0.1:9464/metrics"
    monkeypatch.setenv("EPOCHMETER_GA_API_SECRET", "s")
    assert in_words(resolve({"exporter": "ga", "ga_measurement_id": "G-1"})) == "https://www.google-analytics.com/mp/collect"
