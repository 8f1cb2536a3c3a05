"""One conversation with a PostgREST server through supabase-py: pace, time-outs, retries, refusals.

Owns the client and the key. Every request of every thread passes one gate (requests a second). A fault that
may pass (429, 5xx, a dropped connection, a time-out, a body that is cut off or no JSON) is tried again with
growing waits until the patience is over: RunFailed. What will not pass is an HpcrlError; no connection at
the first contact is ``Unreachable``. The key is in no message, log line or pickle; times are seconds.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, stop_after_delay
from tenacity.wait import wait_exponential, wait_random

from hpcrl.market.source import Unreachable
from hpcrl.types import HpcrlError, RunFailed

if TYPE_CHECKING:
    from postgrest import SyncRequestBuilder

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
FIRST_CONTACT_TRIES = 3
_MINUS_ZEROS = (b":-0,", b":-0}")
"""As PostgreSQL's row_to_json spells it."""


class Answer(NamedTuple):
    rows: list[dict[str, Any]]
    total: int | None
    """Of all rows that fit the filters, where it was asked for."""


class Stopped(RunFailed):
    """Another thread failed, or the user stopped: nothing of its own to say."""


class Refused(HpcrlError):
    """The server understood and said no; ``code`` as PostgREST or PostgreSQL has it."""

    def __init__(self, message: str, status: int, code: str, text: str) -> None:
        super().__init__(message)
        self.status, self.code, self.text = status, code, text


class _Again(Exception):
    """May pass. ``after``: seconds that the server asks for; ``contact``: whether a connection came about."""

    def __init__(self, reason: str, after: float = 0.0, contact: bool = True) -> None:
        super().__init__(reason)
        self.after, self.contact = after, contact


def _host(url: str) -> str:
    """HpcrlError, which does not show it, unless it is an address without a user or password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https") or "@" in parts.netloc:
        raise HpcrlError("SUPABASE_URL is no address of a project: expected https://PROJECT.supabase.co")
    return host + (f":{port}" if port else "")


class Gate:
    """So many turns a second, in the order of asking, however many threads ask."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1.0 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stopping: threading.Event) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if stopping.wait(turn - now):
            raise Stopped("stopped")


class Rest:
    """``open`` first. Thread-safe; once ``stopping`` is set every call soon ends with Stopped."""

    def __init__(
        self, url: str, key: SecretStr, connections: int, requests_per_second: float, patience_seconds: float
    ) -> None:
        self.url = url.rstrip("/")
        self.host = _host(url)
        self.stopping = threading.Event()
        self._key = key
        self._connections = connections
        self._patience = patience_seconds
        self._gate = Gate(requests_per_second)
        self._seen = threading.local()
        self._reached = False
        self._http: httpx.Client | None = None
        self._client: Any = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("not pickled: it holds a key")

    def open(self) -> None:
        from supabase import ClientOptions, create_client  # costs half a second, which --help need not pay

        answer = min(ANSWER_SECONDS, max(self._patience / 4, 1.0))  # so that it is asked more than once
        try:
            self._http = httpx.Client(
                timeout=httpx.Timeout(answer, connect=min(CONNECT_SECONDS, answer), pool=None),
                limits=httpx.Limits(max_connections=self._connections + 1),
                # A redirection would carry the key in its header to wherever it leads.
                follow_redirects=False,
                event_hooks={"response": [self._note]},
            )
        except (ImportError, ValueError):  # whose text may hold the proxy's password
            names = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY"
            raise HpcrlError(f"the proxy that the environment names cannot be used ({names})") from None
        options = ClientOptions(
            httpx_client=self._http,
            auto_refresh_token=False,
            persist_session=False,
            postgrest_client_retry=False,  # its own retries know neither our patience nor a stop
        )
        self._client = create_client(self.url, self._key.get_secret_value(), options)
        _ = self._client.postgrest  # made at first use, which two threads must not do at once

    def close(self) -> None:
        self.stopping.set()
        if self._http is not None:
            self._http.close()
        self._http = self._client = None

    def table(self, schema: str, name: str) -> SyncRequestBuilder:
        client = self._client
        if client is None:
            raise Stopped("closed")
        return client.schema(schema).from_(name)

    def read(self, query: Any, what: str) -> Answer:
        """The rows of a select. ``what`` names symbol and progress, for a failure's message."""
        return self._patiently(query, what, True)

    def write(self, query: Any, what: str) -> None:
        """Send an insert; it may arrive more than once."""
        self._patiently(query, what, False)

    def _patiently(self, query: Any, what: str, reading: bool) -> Answer:
        overtime = stop_after_delay(self._patience)

        def stop(state: RetryCallState) -> bool:
            no_contact = not self._reached and not _fault(state).contact
            if no_contact and state.attempt_number >= FIRST_CONTACT_TRIES:
                return True
            return self.stopping.is_set() or overtime(state)

        def wait(state: RetryCallState) -> float:
            asked = max(_grows(state), min(_fault(state).after, 2 * LONGEST_WAIT))
            return min(asked, max(self._patience - (state.seconds_since_start or 0.0), 0.0))

        retrying = Retrying(
            retry=retry_if_exception_type(_Again),
            wait=wait,
            stop=stop,
            sleep=sleep_using_event(self.stopping),
            reraise=True,
        )
        began = time.monotonic()
        try:
            return retrying(self._once, query, what, reading)
        except _Again as fault:
            if self.stopping.is_set():
                raise Stopped("stopped") from None
            if not self._reached and not fault.contact:
                raise Unreachable(f"{self.host} cannot be reached: {fault}") from None
            tries, spent = retrying.statistics["attempt_number"], time.monotonic() - began
            raise RunFailed(
                f"{what}: {self.host} failed {tries} times in {spent:.0f} s, last with: {fault}; "
                "run it again to go on from here"
            ) from None

    def _note(self, response: httpx.Response) -> None:
        """supabase-py's errors do not tell the status; and whoever answers has been reached."""
        self._reached = True
        self._seen.response = response

    def _once(self, query: Any, what: str, reading: bool) -> Answer:
        from postgrest import APIError

        self._gate.wait(self.stopping)
        self._seen.response = None
        try:
            found = query.execute()
        except APIError as error:
            raise self._refusal(error, self._seen.response, what) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._no_contact(error) from None
        except httpx.HTTPError as error:
            self._reached = True
            raise _Again(self._clean(f"{type(error).__name__} {error}")) from None
        except (ValueError, RecursionError):  # supabase-py: a count that is no number, JSON too deep to read
            raise _Again("an answer that makes no sense") from None
        except RuntimeError:  # httpx: the client was closed, while a thread still asked
            if self.stopping.is_set():
                raise Stopped("stopped") from None
            raise
        return self._answer(found, self._seen.response) if reading else Answer([], None)

    def _answer(self, found: Any, response: httpx.Response) -> Answer:
        # supabase-py takes an empty body for no rows, and hands on what is no JSON as text.
        rows = found.data
        if not response.content.strip() or not isinstance(rows, list) or not set(map(type, rows)) <= {dict}:
            raise _Again(f"HTTP {response.status_code} with a body that is no list of rows")
        # To JSON -0 is an integer, which has no sign; to PostgreSQL it is a float.
        if any(zero in response.content for zero in _MINUS_ZEROS):
            rows = json.loads(response.content, parse_int=lambda text: -0.0 if text == "-0" else int(text))
        return Answer(rows, found.count)

    def _no_contact(self, error: httpx.TransportError) -> Exception:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return RunFailed(f"{self.host}: its certificate is not trusted ({cause.verify_message})")
            if isinstance(cause, ssl.SSLError):
                self._reached = True
            cause = cause.__cause__ or cause.__context__
        return _Again(self._clean(str(error) or "no connection in time"), contact=False)

    def _refusal(self, error: Any, response: httpx.Response, what: str) -> Exception:
        status, code = response.status_code, str(error.code or "")
        text = self._clean(error.message or response.reason_phrase)
        if status == 429 or status >= 500:
            reason = f"HTTP {status}" + (f", {text}" if text else "")
            if code == "57014":
                reason += " (an index on symbol, timeframe and timestamp helps: hpcrl stage schema)"
            return _Again(reason, _retry_after(response))
        if 300 <= status < 400:
            place = self._clean(response.headers.get("location", "another place"))
            return HpcrlError(f"{self.host} redirects to {place} (HTTP {status}): is SUPABASE_URL right?")
        hint = f" ({self._clean(error.hint)})" if error.hint else ""
        shown = f"HTTP {status}{f', {code}' if code else ''}: {text}{hint}"
        if code in ("PGRST301", "PGRST303") and "expired" in text.lower():
            message = f"{self.host}: SUPABASE_SERVICE_ROLE_KEY has expired: make a new one ({shown})"
        elif status == 401 and code != "42501":
            message = f"{self.host} does not accept SUPABASE_SERVICE_ROLE_KEY: copy it anew ({shown})"
        elif code == "42501" or status in (401, 403):
            message = f"{self.host}: this needs the service_role key, or rights granted to its role ({shown})"
        elif code == "PGRST106":
            message = f"{self.host} does not expose this schema: Settings > API > Exposed schemas ({shown})"
        else:
            message = f"{what}: {self.host} refused: {shown}"
        return Refused(message, status, code, text + hint)

    def _clean(self, text: str) -> str:
        """One short line in which the key does not occur, whatever a server sends back."""
        key = self._key.get_secret_value()
        return " ".join(str(text).replace(key, "***").split())[:300]


_grows = wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT) + wait_random(0, FIRST_WAIT)


def _fault(state: RetryCallState) -> _Again:
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, _Again), "nothing else is tried again"
    return fault


def _retry_after(response: httpx.Response) -> float:
    """Seconds, from a number or a date; 0 where it says nothing of use."""
    text = response.headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(float(text), 0.0)
    with contextlib.suppress(TypeError, ValueError):
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    return 0.0
