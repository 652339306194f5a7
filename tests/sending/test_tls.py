"""TLS and mutual TLS over both protocols, with certificates that are right and with every kind that is not."""

from __future__ import annotations

import datetime
import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from exporters.outbox import Outbox
from profiler import Profiler, settings
from profiler.config.folder import Folder
from support.processes import python

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
trustme = pytest.importorskip("trustme")

METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
PROTOCOLS = ("http/protobuf", "grpc")
DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """A certificate authority, and files with what it made."""

    ca: Any
    folder: Path

    @property
    def roots(self) -> str:
        path = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(path)
        return str(path)

    def issue(self, name: str, file: str, **more: Any) -> tuple[str, str]:
        """Files with a certificate for this name, and its key."""
        made = self.ca.issue_cert(name, **more)
        certificate, key = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return str(certificate), str(key)


def self_signed(folder: Path) -> tuple[str, str]:
    """Make a certificate for localhost that vouches for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "self.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "self.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return str(folder / "self.pem"), str(folder / "self.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(trustme.CA(), tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that nobody here trusts."""
    return Authority(trustme.CA(), tmp_path_factory.mktemp("stranger"))


@contextmanager
def collector(protocol: str, certificate: tuple[str, str], clients: str | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """Run a collector with this certificate; with ``clients``, only for those that this authority knows."""
    serve = _over_grpc if protocol == "grpc" else _over_http
    with serve(certificate, clients) as found:
        yield found


@contextmanager
def _over_http(certificate: tuple[str, str], clients: str | None) -> Iterator[tuple[str, list[bytes]]]:
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a handshake that fails is what is tested

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if clients is not None:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def _over_grpc(certificate: tuple[str, str], clients: str | None) -> Iterator[tuple[str, list[bytes]]]:
    received: list[bytes] = []

    def export(request: bytes, context: Any) -> bytes:
        received.append(request)
        return b""

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.metrics.v1.MetricsService", {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    pair = [(Path(certificate[1]).read_bytes(), Path(certificate[0]).read_bytes())]
    roots = None if clients is None else Path(clients).read_bytes()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials(pair, roots, clients is not None))
    server.start()
    try:
        yield f"https://localhost:{port}", received
    finally:
        server.stop(0).wait(5)


def run(address: str, protocol: str, **chosen: Any) -> str:
    """Send a run to this address, and return its notes."""
    chosen = {"otlp_endpoint": address, "otlp_protocol": protocol, "exit_timeout": 5, **chosen}
    with Profiler("x", exporter="otlp", settings=chosen) as prof:
        list(prof.train(range(3)))
    return " ".join(prof.summary.to_dict().get("notes", {}))


def waiting(home: Path) -> int:
    return len(Outbox(Folder(home / "outbox")).waiting())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_the_right_certificate_it_arrives(authority: Authority, protocol: str, home: Path) -> None:
    with collector(protocol, authority.issue("localhost", "good")) as (address, received):
        assert run(address, protocol, otlp_certificate=authority.roots) == ""
    assert (len(received), waiting(home)) == (1, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", ["another name", "expired", "unknown", "self-signed"])
def test_wrong_certificate_sends_and_loses_nothing(
    authority: Authority, stranger: Authority, protocol: str, fault: str, home: Path
) -> None:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - DAY
    certificate = {
        "another name": lambda: authority.issue("elsewhere.example", "name"),
        "expired": lambda: authority.issue("localhost", "old", not_after=yesterday),
        "unknown": lambda: stranger.issue("localhost", "own"),
        "self-signed": lambda: self_signed(stranger.folder),
    }[fault]()
    with collector(protocol, certificate) as (address, received):
        notes = run(address, protocol, otlp_certificate=authority.roots)
    assert (received, waiting(home)) == ([], 1)
    assert "not delivered at once" in notes
    if protocol == "http/protobuf":
        assert {"another name": "mismatch", "unknown": "local issuer"}.get(fault, fault) in notes


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mutual_tls(authority: Authority, stranger: Authority, protocol: str, home: Path) -> None:
    with collector(protocol, authority.issue("localhost", "good"), authority.roots) as (address, received):
        assert "not delivered at once" in run(address, protocol, otlp_certificate=authority.roots)
        foreign = stranger.issue("someone", "foreign")
        theirs = {"otlp_client_certificate": foreign[0], "otlp_client_key": foreign[1]}
        assert "not delivered at once" in run(address, protocol, otlp_certificate=authority.roots, **theirs)
        assert received == []
        own = authority.issue("me", "me")
        ours = {"otlp_client_certificate": own[0], "otlp_client_key": own[1]}
        run(address, protocol, otlp_certificate=authority.roots, **ours)
    assert (len(received), waiting(home)) == (3, 0)  # the two that waited, and this one


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_standard_variables_name_certificates_too(
    authority: Authority, protocol: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.issue("me", "me")
    with collector(protocol, authority.issue("localhost", "good"), authority.roots) as (address, received):
        for name, value in (
            *(("ENDPOINT", address), ("PROTOCOL", protocol), ("CERTIFICATE", authority.roots)),
            *(("CLIENT_CERTIFICATE", certificate), ("CLIENT_KEY", key)),
        ):
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
        settings.update(exporter="otlp", exit_timeout=5)
        with Profiler("x") as prof:
            list(prof.train(range(3)))
    assert (len(received), waiting(home), prof.summary.to_dict().get("notes")) == (1, 0, None)


SAID = """
import sys
from profiler import Profiler
from profiler.config.folder import Folder
where = dict(zip(("otlp_endpoint", "otlp_protocol", "otlp_certificate"), sys.argv[1:]))
with Profiler("x", exporter="otlp", settings=where):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_failed_handshake_prints_nothing(authority: Authority, stranger: Authority, protocol: str) -> None:
    with collector(protocol, stranger.issue("localhost", "own")) as (address, _):
        answer = python("-c", SAID, address, protocol, authority.roots)
    assert (answer.code, answer.out) == (0, "")
    assert [line[:16] for line in answer.err.splitlines()] == ["epochmeter: this"]  # the one line of the first time


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_environment_changes_no_trust(
    authority: Authority, stranger: Authority, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """A variable can neither add certificates to trust, nor have the keys of a connection written to a file."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with collector(protocol, authority.issue("localhost", "server")) as (address, received):
        run(address, protocol, otlp_certificate=authority.roots)
        assert len(received) == 1 and not (tmp_path / "keys").exists()
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
            monkeypatch.setenv(name, authority.roots)
        run(address, protocol)
        assert len(received) == 1
