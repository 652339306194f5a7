"""ClickHouse's HTTP interface over chDB, which is its engine in a process: a stand-in for a server, on loopback alone.

It knows what `clickhouse-connect` asks of it. Started as a program, because chDB sets signal handlers and starts threads; it
prints its port, and ends with its standard input.
"""

from __future__ import annotations

import gzip
import http.server
import re
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import lz4.frame

INSERT = re.compile(r"\s*INSERT INTO\s+(\S+)\s*(\(.*?\))?\s*FORMAT (\w+)\s*$", re.DOTALL | re.IGNORECASE)
UNPACK = {"": bytes, "gzip": gzip.decompress, "lz4": lambda body: b"".join(_frames(body))}
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*$")


def _frames(body: bytes) -> Iterator[bytes]:
    """Yield what is packed in each frame: a client sends one for each block of rows."""
    while body:
        frame = lz4.frame.LZ4FrameDecompressor()
        yield frame.decompress(body)
        body = frame.unused_data or b""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        body = self.chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.whole()
        self.answer(UNPACK[self.headers.get("Content-Encoding", "")](body))

    def whole(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, body: bytes) -> None:
        address = urllib.parse.urlparse(self.path)
        asked = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        if address.path == "/ping":
            self.reply(200, b"Ok.\n")
            return
        sql, data = asked.get("query", ""), body
        first, _, rest = body.partition(b"\n")
        if not sql and INSERT.match(first.decode(errors="replace")):
            sql, data = first.decode(), rest
        elif not sql:
            sql, data = body.decode(), b""
        parameters = {name[6:]: value for name, value in asked.items() if name.startswith("param_")}
        try:
            with LOCK:
                database = asked.get("database") or self.headers.get("X-ClickHouse-Database") or "default"
                SESSION.query(f"USE {database}")
                self.reply(200, *run(sql, data, parameters))
        except Exception as error:
            self.reply(500, str(error).encode(), code="1")

    def reply(self, status: int, content: bytes, form: str = "", code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-ClickHouse-Summary", '{"read_rows":"0"}')
        for name, value in (("X-ClickHouse-Format", form), ("X-ClickHouse-Exception-Code", code)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def run(sql: str, data: bytes, parameters: dict[str, str]) -> tuple[bytes, str]:
    insert = INSERT.match(sql)
    if insert:
        with tempfile.NamedTemporaryFile(suffix=".native") as file:
            Path(file.name).write_bytes(data)
            table, columns, form = insert[1], insert[2] or "", insert[3]
            kinds = f", '{structure(table, columns)}'" if form == "RowBinary" else ""  # which has no names and types in it
            SESSION.query(f"INSERT INTO {table} {columns} SELECT * FROM file('{file.name}', '{form}'{kinds})")  # noqa: S608
        return b"", ""
    named = FORMAT.search(sql)
    form = named[1] if named else "TabSeparated"
    asked = sql[: named.start()] if named else sql
    result = SESSION.query(asked, form, params=parameters) if parameters else SESSION.query(asked, form)
    return bytes(result.bytes() or b""), form


def structure(table: str, columns: str) -> str:
    """Return the names and types of some columns of a table."""
    told = bytes(SESSION.query(f"DESCRIBE TABLE {table}", "TabSeparatedRaw").bytes()).decode()
    kinds = dict(line.split("\t")[:2] for line in told.splitlines())
    names = [name.strip(' `"\n') for name in columns.strip("()").split(",")] if columns else list(kinds)
    return ", ".join(f"`{name}` {kinds[name]}" for name in names).replace("\\", "\\\\").replace("'", "\\'")


if __name__ == "__main__":
    from chdb.session import Session

    SESSION, LOCK = Session(), threading.Lock()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    server.shutdown()
