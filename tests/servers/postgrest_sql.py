"""From a PostgREST request to one SQL statement, and from PostgreSQL's errors to PostgREST's.

The part that supabase-py's builders use for tables: select (columns, alias, cast), filters, order, limit,
offset, Range, insert, upsert, delete. Anything else is ``Unspoken``: a test must not pass because the server
took no notice. Status codes, messages and the shape of the statements follow PostgREST 12 to 14.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import parse_qsl

import psycopg
from psycopg import sql

RESERVED = ("select", "order", "limit", "offset", "columns", "on_conflict", "and", "or", "not.and", "not.or")
COMPARE = {"eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "like": "LIKE"}
IS = {"null": "NULL", "not_null": "NOT NULL", "true": "TRUE", "false": "FALSE", "unknown": "UNKNOWN"}


class Refused(Exception):
    """An error that the real service answers, too."""

    def __init__(
        self, status: int, code: str | None, message: str, details: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.body = {"code": code, "details": details, "hint": hint, "message": message}


class Unspoken(Refused):
    def __init__(self, what: str) -> None:
        super().__init__(501, "TEST", f"the tests' server does not speak {what}")


@dataclass(frozen=True)
class Request:
    """What an address and its headers ask for."""

    method: str
    schema: str
    table: str
    params: tuple[tuple[str, str], ...]
    prefer: frozenset[str]
    range: str | None

    @classmethod
    def read(
        cls, method: str, schema: str, table: str, query: str, prefer: str, range_: str | None
    ) -> Request:
        wanted = frozenset(part.strip() for part in prefer.split(",") if part.strip())
        params = tuple(parse_qsl(query, keep_blank_values=True))
        if any(key.endswith(("and", "or")) and key in RESERVED for key, _ in params):
            raise Unspoken("and=() and or=()")
        if wanted & {"count=planned", "count=estimated"}:
            raise Unspoken("planned and estimated counts")
        return cls(method, schema, table, params, wanted, range_)

    def one(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.params if key == name), default)

    @property
    def filters(self) -> list[tuple[str, str]]:
        return [(_name(key), value) for key, value in self.params if key not in RESERVED]

    @property
    def count(self) -> bool:
        return "count=exact" in self.prefer

    def equal_to(self, column: str) -> str | None:
        """The value that a filter ``column=eq.VALUE`` names."""
        return next((v[3:] for key, v in self.filters if key == column and v.startswith("eq.")), None)

    def from_stamp(self, column: str) -> str | None:
        """The value of ``column=gte.VALUE`` or ``gt.VALUE``, where a page starts; the last of several."""
        found = [v.split(".", 1)[1] for key, v in self.filters if key == column and re.match(r"gte?\.", v)]
        return found[-1] if found else None

    @property
    def qualified(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table)

    def column(self, name: str) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table, name)

    def bounds(self, max_rows: int | None) -> tuple[int, int | None]:
        """(offset, rows at most): what limit, offset, the header Range and max-rows leave together."""
        lower, upper = max(int(self.one("offset", "0")), 0), None
        if limit := self.one("limit"):
            if int(limit) < 0:
                raise _range("Limit should be greater than or equal to zero.")
            upper = lower + int(limit) - 1
        if self.range and (found := re.fullmatch(r"(?:items=)?(\d+)-(\d*)", self.range)):
            first, last = int(found[1]), int(found[2]) if found[2] else None
            if last is not None and last < first:
                words = "The lower boundary must be lower than or equal to the upper boundary"
                raise _range(f"{words} in the Range header.")
            lower = max(lower, first)
            upper = last if upper is None else upper if last is None else min(upper, last)
        rows = None if upper is None else max(upper - lower + 1, 0)
        return lower, rows if max_rows is None else min(max_rows, rows if rows is not None else max_rows)


def _range(details: str) -> Refused:
    return Refused(416, "PGRST103", "Requested range not satisfiable", details)


def out_of_bounds(offset: int, total: int) -> Refused:
    return _range(f"An offset of {offset} was requested, but there are only {total} rows.")


def content_range(lower: int, rows: int, total: int | None) -> tuple[int, str]:
    """(status, header): 206 where the count says that there is more than this page."""
    upper = lower + rows - 1
    status = 200
    if total is not None:
        status = 416 if lower > total else 206 if rows < total else 200
    span = f"{lower}-{upper}" if total != 0 and lower <= upper else "*"
    return status, f"{span}/{'*' if total is None else total}"


def split_list(text: str) -> list[str]:
    """Commas outside quotes and brackets part; quotes may hold anything, a backslash escapes."""
    if not text:
        return []
    return re.findall(r'((?:"(?:\\.|[^"\\])*"|\([^)]*\)|[^,"])*)(?:,|$)', text)[:-1]


def _name(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _selected(request: Request) -> sql.Composable:
    parts: list[sql.Composable] = []
    for item in split_list(request.one("select", "*")):
        found = re.fullmatch(r'(?:([^:"(]+):(?!:))?("(?:\\.|[^"\\])*"|[^:"(]+)(?:::(\w+))?', item.strip())
        if re.search(r"\.(sum|avg|count|min|max)\(\)|^count\(\)", item):
            raise Refused(400, "PGRST123", "Use of aggregate functions is not allowed")
        if not found or "->" in item or "(" in item:
            raise Unspoken(f"select={item}")
        alias, name, cast = found[1], found[2].strip(), found[3]
        if name == "*":
            parts.append(sql.SQL("{}.*").format(request.qualified))
            continue
        column: sql.Composable = request.column(_name(name))
        if cast:
            column = sql.SQL("CAST({} AS {})").format(column, sql.SQL(cast))
        if alias or cast:
            column = sql.SQL("{} AS {}").format(column, sql.Identifier(alias or _name(name)))
        parts.append(column)
    return sql.SQL(", ").join(parts)


def _condition(request: Request, name: str, text: str) -> sql.Composable:
    column = request.column(name)
    negated, text = text.startswith("not."), text.removeprefix("not.")
    operator, _, value = text.partition(".")
    if operator in COMPARE:
        if operator == "like":
            value = value.replace("*", "%")
        found = sql.SQL("{} {} {}").format(column, sql.SQL(COMPARE[operator]), sql.Literal(value))
    elif operator == "is" and value.lower() in IS:
        found = sql.SQL("{} IS {}").format(column, sql.SQL(IS[value.lower()]))
    elif operator == "in" and value.startswith("(") and value.endswith(")"):
        # An array's literal has no type of its own, so that it fits a column of any.
        values = [json.dumps(_name(one), ensure_ascii=False) for one in split_list(value[1:-1])]
        found = sql.SQL("{} = ANY ({})").format(column, sql.Literal("{" + ",".join(values) + "}"))
    elif re.fullmatch(r"[a-z]+(\(\w+\))?", operator) and value and operator not in ("is", "in"):
        raise Unspoken(f"the filter {operator}")
    else:
        raise Refused(
            400,
            "PGRST100",
            f'"failed to parse filter ({text})" (line 1, column 1)',
            "unexpected end of input expecting operator (eq, gt, ...)",
        )
    return sql.SQL("NOT {}").format(found) if negated else found


def where(request: Request) -> sql.Composable:
    found = [_condition(request, name, text) for name, text in request.filters]
    return sql.SQL(" WHERE ") + sql.SQL(" AND ").join(found) if found else sql.SQL("")


def _order(request: Request) -> sql.Composable:
    parts = []
    for item in split_list(request.one("order")):
        name, *words = re.findall(r'"(?:\\.|[^"\\])*"|[^.]+', item)
        if not set(words) <= {"asc", "desc", "nullsfirst", "nullslast"}:
            raise Refused(400, "PGRST100", f'"failed to parse order ({item})" (line 1, column 1)')
        text = " ".join(w.upper().replace("NULLS", "NULLS ") for w in words)
        parts.append(sql.SQL("{} {}").format(request.column(_name(name)), sql.SQL(text)))
    return sql.SQL(" ORDER BY ") + sql.SQL(", ").join(parts) if parts else sql.SQL("")


def read_statement(request: Request, max_rows: int | None) -> sql.Composed:
    """(total or NULL, rows of the page, JSON of the page); HEAD gives no JSON."""
    lower, rows = request.bounds(max_rows)
    end = sql.SQL("" if rows is None else f" LIMIT {rows}") + sql.SQL(f" OFFSET {lower}" if lower else "")
    condition = where(request)
    page = sql.SQL("SELECT {} FROM {}").format(_selected(request), request.qualified)
    total = sql.SQL("NULL::bigint")
    if request.count:
        total = sql.SQL("(SELECT count(*) FROM {}{})").format(request.qualified, condition)
    body = sql.SQL("''" if request.method == "HEAD" else "coalesce(json_agg(_postgrest_t), '[]')::text")
    return sql.SQL(
        "WITH pgrst_source AS ({}{}{}{}) SELECT {}, count(_postgrest_t), {} "
        "FROM (SELECT * FROM pgrst_source) _postgrest_t"
    ).format(page, condition, _order(request), end, total, body)


def delete_statement(request: Request) -> sql.Composed:
    if not request.filters:  # Supabase loads pg-safeupdate
        raise Refused(400, "21000", "DELETE requires a WHERE clause")
    return _changed(
        request, sql.SQL("DELETE FROM {}{}").format(request.qualified, where(request)), _selected(request)
    )


def insert_statements(request: Request, body: bytes, connection: psycopg.Connection) -> list[sql.Composed]:
    """One statement, or one for each set of keys where absent ones take their defaults (missing=default)."""
    try:
        rows = json.loads(body)
    except ValueError:
        raise Refused(400, "PGRST102", "Empty or invalid json") from None
    rows = rows if isinstance(rows, list) else [rows]
    known = column_names(request, connection)
    named = [_name(part) for part in split_list(request.one("columns"))]
    if not named and len({frozenset(row) for row in rows}) > 1:
        raise Refused(400, "PGRST102", "All object keys must match")
    names = named or (list(rows[0]) if rows else [])
    if unknown := next((name for name in names if name not in known), None):
        message = f"Could not find the '{unknown}' column of '{request.table}' in the schema cache"
        raise Refused(400, "PGRST204", message)
    if not names:
        return []
    if "missing=default" not in request.prefer:
        return [_insert(request, names, body.decode(), known, connection)]
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(name for name in names if name in row)].append(row)
    return [
        _insert(request, list(keys), json.dumps(group), known, connection) for keys, group in groups.items()
    ]


def _insert(
    request: Request, names: list[str], payload: str, known: list[str], connection: psycopg.Connection
) -> sql.Composed:
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    record = sql.SQL("json_populate_recordset(NULL::{}, {}::json)").format(
        request.qualified, sql.Literal(payload)
    )
    text = sql.SQL("INSERT INTO {}({}) SELECT {} FROM {} _").format(
        request.qualified, columns, columns, record
    )
    keys = [_name(part) for part in split_list(request.one("on_conflict"))] or primary_key(
        request, connection
    )
    if keys and "resolution=ignore-duplicates" in request.prefer:
        target = sql.SQL(", ").join(map(sql.Identifier, keys))
        text += sql.SQL(" ON CONFLICT({}) DO NOTHING").format(target)
    elif keys and "resolution=merge-duplicates" in request.prefer:
        target = sql.SQL(", ").join(map(sql.Identifier, keys))
        pairs = [sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in names]
        text += sql.SQL(" ON CONFLICT({}) DO UPDATE SET {}").format(target, sql.SQL(", ").join(pairs))
    return _changed(request, text, _selected(request))


def _changed(request: Request, text: sql.Composable, returning: sql.Composable) -> sql.Composed:
    full = "return=representation" in request.prefer
    body = sql.SQL("coalesce(json_agg(_postgrest_t), '[]')::text" if full else "''")
    return sql.SQL(
        "WITH pgrst_source AS ({} RETURNING {}) SELECT NULL::bigint, count(*), {} "
        "FROM (SELECT * FROM pgrst_source) _postgrest_t"
    ).format(text, returning if full else sql.SQL("1"), body)


def column_names(request: Request, connection: psycopg.Connection) -> list[str]:
    found = connection.execute(
        "SELECT attname FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
        (request.qualified.as_string(connection),),
    ).fetchall()
    if not found:
        raise missing_table(request, connection)
    return [name for (name,) in found]


def primary_key(request: Request, connection: psycopg.Connection) -> list[str]:
    found = connection.execute(
        "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
        "AND a.attnum = ANY (i.indkey) WHERE i.indisprimary AND i.indrelid = %s::regclass",
        (request.qualified.as_string(connection),),
    ).fetchall()
    return [name for (name,) in found]


def missing_table(request: Request, connection: psycopg.Connection) -> Refused:
    tables = connection.execute(
        "SELECT relname FROM pg_class "
        "WHERE relkind IN ('r', 'v', 'm', 'p') AND relnamespace = to_regnamespace(%s)",
        (request.schema,),
    ).fetchall()
    near = difflib.get_close_matches(request.table, [name for (name,) in tables], 1, 0.75)
    hint = f"Perhaps you meant the table '{request.schema}.{near[0]}'" if near else None
    message = f"Could not find the table '{request.schema}.{request.table}' in the schema cache"
    return Refused(404, "PGRST205", message, hint=hint)


def from_postgres(error: psycopg.Error, authenticated: bool) -> Refused:
    """PostgREST's status for PostgreSQL's code, and the error as PostgreSQL words it."""
    code, diag = error.sqlstate or "", error.diag
    exact = {"23503": 409, "23505": 409, "25006": 405, "42883": 404, "42P01": 404, "57P01": 503, "21000": 500}
    first = {
        "08": 503,
        "28": 403,
        "40": 500,
        "53": 503,
        "54": 500,
        "55": 500,
        "57": 500,
        "58": 500,
        "XX": 500,
    }
    status = exact.get(code) or first.get(code[:2]) or 400
    if code == "42501":
        status = 403 if authenticated else 401
    if not code:
        message = "Database connection error. Retrying the connection."
        return Refused(503, "PGRST000", message, str(error))
    return Refused(status, code, diag.message_primary or str(error), diag.message_detail, diag.message_hint)
