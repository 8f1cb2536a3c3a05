"""The process of the tests' PostgREST: HTTP/1.1 with keep-alive, a thread for each connection.

Reads its settings as one line of JSON from standard input, prints its port, and serves until that input ends:
it never outlives the test that started it. ``/_control`` sets switches and tells what was served.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql

from servers import postgrest_sql as statements
from servers.postgrest_faults import BEFORE, Answer, Switches, refusal
from servers.postgrest_sql import Refused, Request

DOUBLE_CHECK = "Double check your Supabase `anon` or `service_role` API key."


class Served:
    """Counters; ``log`` keeps the last 20,000 requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.requests, self.rows, self.busy, self.peak = 0, 0, 0, 0
        self.by_symbol: dict[str, Counter[str]] = {}
        self.by_status: Counter[str] = Counter()
        self.log: deque[dict[str, Any]] = deque(maxlen=20_000)

    def begin(self) -> None:
        with self._lock:
            self.busy += 1
            self.peak = max(self.peak, self.busy)

    def end(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self.busy -= 1
            self.requests += 1
            self.rows += entry["rows"]
            self.by_status[str(entry["status"])] += 1
            self.log.append(entry)
            if entry["symbol"] is not None:
                one = self.by_symbol.setdefault(entry["symbol"], Counter())
                one.update(requests=1, rows=entry["rows"])

    def tell(self, log: bool) -> dict[str, Any]:
        with self._lock:
            return {
                "requests": self.requests,
                "rows": self.rows,
                "peak": self.peak,
                "symbols": {name: dict(one) for name, one in self.by_symbol.items()},
                "statuses": dict(self.by_status),
                "log": list(self.log) if log else [],
            }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", settings["port"]), Handler)
        self.settings = settings
        self.switches, self.served = Switches(), Served()
        self._idle: queue.LifoQueue[psycopg.Connection] = queue.LifoQueue()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is no error
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def database(self):
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = psycopg.connect(
                self.settings["conninfo"], autocommit=True, options="-c timezone=UTC -c client_encoding=UTF8"
            )
        try:
            yield connection
        finally:
            if not connection.closed:
                self._idle.put(connection)

    def role(self, apikey: str | None, authorization: str | None) -> str:
        """The database's role that the gateway and PostgREST give a request; Refused: their 401s."""
        keys = self.settings["keys"]
        if not apikey:
            hint = "No `apikey` request header or url param was found."
            raise Refused(401, None, "No API key found in request", hint=hint)
        if apikey not in keys:
            raise Refused(401, None, "Invalid API key", hint=DOUBLE_CHECK)
        token = (authorization or f"Bearer {apikey}").removeprefix("Bearer ")
        if token.count(".") != 2:
            if token != apikey:  # the gateway turns an sb_secret_ key into a JWT only where both agree
                raise Refused(401, "PGRST301", f"Expected 3 parts in JWT; got {token.count('.') + 1}")
            return str(keys[apikey])
        return self._claims(token)

    def _claims(self, token: str) -> str:
        signed, _, signature = token.rpartition(".")
        secret = self.settings["jwt_secret"].encode()
        right = base64.urlsafe_b64encode(hmac.new(secret, signed.encode(), hashlib.sha256).digest())
        if not hmac.compare_digest(right.rstrip(b"="), signature.encode()):
            details = "None of the keys was able to decode the JWT"
            raise Refused(401, "PGRST301", "No suitable key or wrong key type", details)
        payload = signed.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if claims.get("exp", time.time()) < time.time() - 30:  # PostgREST allows 30 s of skew
            raise Refused(401, self.settings["expired_code"], "JWT expired")
        return str(claims.get("role", "anon"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "postgrest-tests", ""
    disable_nagle_algorithm = True
    server: Server
    _reset = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if path.path == "/_control":
            return self._send(self._control(json.loads(body)), "POST")
        entry = {"method": self.command, "path": self.path, "at": time.time(), "symbol": None}
        entry |= {"status": 0, "rows": 0}
        self.server.served.begin()
        try:
            answer = self._answer(path.path, path.query, body, entry)
            if answer is not None:
                entry |= {"status": answer.status, "rows": answer.rows}
                self._send(answer, self.command)
            else:
                self._break(self._reset)
        finally:
            entry["seconds"] = time.time() - entry["at"]
            self.server.served.end(entry)

    do_HEAD = do_POST = do_DELETE = do_PATCH = do_PUT = do_GET

    def _control(self, asked: dict[str, Any]) -> Answer:
        do = asked.pop("do")
        server = self.server
        told: Any = None
        try:
            if do == "switch":
                told = server.switches.add(**asked)
            elif do == "clear":
                server.switches.clear()
            elif do == "reset":
                server.served.reset()
            elif do == "set":
                server.settings.update(asked)
            elif do == "stats":
                told = server.served.tell(asked["log"]) | {"acted": server.switches.acted()}
        except (TypeError, ValueError, KeyError) as error:
            return Answer(400, {}, str(error).encode())
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(told).encode())

    def _answer(self, path: str, query: str, body: bytes, entry: dict[str, Any]) -> Answer | None:
        """None: break the connection without an answer."""
        try:
            request = self._read(path, query)
            entry["symbol"] = symbol = request.equal_to(self.server.settings["symbol_column"])
            facts = (self.command, request.table, symbol, request.count)
            for switch in self.server.switches.striking(BEFORE, *facts):
                if switch.kind == "drop":
                    self._reset = switch.options.get("how", "reset") == "reset"
                    if switch.options.get("how") == "garbage":
                        self.wfile.write(b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n")
                    return None
                if switch.kind == "slow":
                    time.sleep(switch.options["seconds"])
                elif switch.kind == "sql":
                    self._change(switch.options["sql"], request)
                else:
                    return refusal(switch)
            role = self.server.role(self.headers.get("apikey"), self.headers.get("Authorization"))
            answer = self._ask(request, body, role)
        except Refused as error:
            return self._refused(error)
        self.server.switches.spoil(answer, *facts)
        return answer

    def _read(self, path: str, query: str) -> Request:
        parts = path.strip("/").split("/")
        if len(parts) != 3 or parts[:2] != ["rest", "v1"]:
            raise Refused(404, "PGRST125", "Invalid path specified in request URL")
        reading = self.command in ("GET", "HEAD")
        schemas = self.server.settings["schemas"]
        schema = self.headers.get("Accept-Profile" if reading else "Content-Profile") or schemas[0]
        if schema not in schemas:
            hint = f"Only the following schemas are exposed: {', '.join(schemas)}"
            raise Refused(406, "PGRST106", f"Invalid schema: {schema}", hint=hint)
        prefer = ",".join(self.headers.get_all("Prefer") or [])
        range_ = self.headers.get("Range") if reading else None
        return Request.read(self.command, schema, unquote(parts[2]), query, prefer, range_)

    def _change(self, text: str, request: Request) -> None:
        """Somebody else writes to the table meanwhile; %(symbol)s and %(cursor)s are the request's."""
        settings = self.server.settings
        values = {
            "symbol": request.equal_to(settings["symbol_column"]),
            "cursor": request.from_stamp(settings["timestamp_column"]),
        }
        with self.server.database() as connection:
            connection.execute(text, values)

    def _ask(self, request: Request, body: bytes, role: str) -> Answer:
        try:
            with self.server.database() as connection:
                try:
                    begin = sql.SQL("BEGIN; SET LOCAL ROLE {}").format(sql.Identifier(role))
                    connection.execute(begin)
                    answer = self._run(request, body, connection)
                    connection.execute("COMMIT")
                    return answer
                except psycopg.errors.UndefinedTable:
                    connection.execute("ROLLBACK")
                    raise statements.missing_table(request, connection) from None
                finally:
                    if not connection.closed and connection.info.transaction_status:
                        connection.execute("ROLLBACK")
        except psycopg.Error as error:
            raise statements.from_postgres(error, role != "anon") from None

    def _run(self, request: Request, body: bytes, connection: psycopg.Connection) -> Answer:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if request.method in ("GET", "HEAD"):
            max_rows = self.server.settings["max_rows"]
            found = connection.execute(statements.read_statement(request, max_rows)).fetchone()
            assert found is not None
            total, rows, text = found
            lower = request.bounds(max_rows)[0]
            status, headers["Content-Range"] = statements.content_range(lower, rows, total)
            if status == 416:
                raise statements.out_of_bounds(lower, total)
            headers |= {"Content-Location": self.path.removeprefix("/rest/v1"), "Range-Unit": "items"}
            return Answer(status, headers, text.encode(), rows, lower, total)
        if request.method == "DELETE":
            asked, status = [statements.delete_statement(request)], 204
        elif request.method == "POST":
            asked, status = statements.insert_statements(request, body, connection), 201
        else:
            raise statements.Unspoken(request.method)
        rows, text = 0, ""
        for statement in asked:
            _, count, text = connection.execute(statement).fetchone()  # type: ignore[misc]
            rows += count
        headers["Content-Range"] = f"*/{rows if request.count else '*'}"
        if status == 204 and text:
            status = 200
        return Answer(status, headers, text.encode(), rows)

    def _refused(self, error: Refused) -> Answer:
        body = error.body
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if error.code is None:  # the gateway's own
            body = {key: body[key] for key in ("message", "hint") if body[key]}
        else:
            headers["Proxy-Status"] = f"PostgREST; error={error.code}"
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if error.status == 416 and (words := (body["details"] or "").split())[-1:] == ["rows."]:
            headers["Content-Range"] = f"*/{words[-2]}"
        return Answer(error.status, headers, json.dumps(body, separators=(",", ":")).encode())

    def _send(self, answer: Answer, method: str) -> None:
        body = b"" if method == "HEAD" else answer.body
        headers = dict(answer.headers)
        if self.server.settings["gzip"] and body and "gzip" in (self.headers.get("Accept-Encoding") or ""):
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        broken = answer.drop_at is not None
        if broken and answer.drop_how == "chunks":
            headers["Transfer-Encoding"] = "chunked"
        elif answer.status != 204 and method != "HEAD":
            headers["Content-Length"] = str(len(body))
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers_into(body if not (broken or answer.pause) else b"")
        if answer.pause:
            self.wfile.write(body[: len(body) // 2])
            time.sleep(answer.pause)
            self.wfile.write(body[len(body) // 2 :])
        if broken:
            piece = body[: min(answer.drop_at or 0, len(body) - 1)]
            chunked = answer.drop_how == "chunks"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self._break(False)

    def end_headers_into(self, body: bytes) -> None:
        """Headers and body in one packet where they fit."""
        self._headers_buffer += [b"\r\n", body]
        self.flush_headers()

    def _break(self, reset: bool) -> None:
        """Close the connection; with a reset nothing more is sent."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            if reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                self.connection.shutdown(socket.SHUT_WR)
        self.rfile.close()
        self.connection.close()


def main() -> None:
    server = Server(json.loads(sys.stdin.readline()))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
