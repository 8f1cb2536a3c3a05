"""``hpcrl bench stage``: writing and reading the market file, and fetching from a database by both ways.

Writing stands beside plain h5py with the same filter (no hash, no sync), reading beside a plain read of the
file's bytes, COPY beside PostgREST. What is compared alternates within a round, so that a busy machine slows
both alike: the ratio is what counts. Times are medians over the rounds, memory is the most of any of them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hpcrl.bench.machine import machine
from hpcrl.config.secrets import Secrets, conninfo
from hpcrl.market.source import Source, Span
from hpcrl.types import HpcrlError, RunFailed

if TYPE_CHECKING:
    from hpcrl.market.bars import SymbolBars
    from hpcrl.market.request import DatabaseRequest

WRITE, DISK, CACHE = "write", "read_from_disk", "read_cached"


def bench_stage(
    symbols: int,
    rows: int,
    rounds: int,
    secrets: Secrets | None = None,
    request: DatabaseRequest | None = None,
) -> dict[str, Any]:
    """The file: so many synthetic symbols of ``rows`` bars each. The database that ``secrets`` lead to (None
    where they lead to none): bars of ``request.symbols``, else of the first ``symbols`` that it has.

    HpcrlError: a number that cannot be measured, a database that cannot be read.
    """
    from hpcrl.market.features import BURN_IN

    for name, number, least in (("symbols", symbols, 1), ("rows", rows, BURN_IN + 1), ("rounds", rounds, 1)):
        if number < least:
            raise HpcrlError(f"{name} is {number}; at least {least}")
    with tempfile.TemporaryDirectory() as folder:
        ways = {} if secrets is None or request is None else _ways(secrets, request, Path(folder))
        wanted = _symbols(ways, request.symbols, symbols) if ways and request is not None else ()
        result: dict[str, Any] = {"bench": "stage", "machine": machine(), "rounds": rounds}
        result |= _measure_file(Path(folder), symbols, rows, rounds)
        result["database"] = _measure_database(ways, wanted, rounds) if ways else None
    return result


@dataclass(frozen=True)
class _Task:
    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    """What is not measured."""


def _alternate(tasks: list[_Task], rounds: int) -> list[dict[str, Any]]:
    """Of each task its median seconds, those of all rounds, the most that memory grew, its last result."""
    found: list[dict[str, Any]] = [{"rounds": [], "peak_bytes": None} for _ in tasks]
    for _ in range(rounds):
        for task, one in zip(tasks, found, strict=True):
            task.before()
            held = _resident(reset=True)
            start = time.perf_counter()
            one["result"] = task.run()
            one["rounds"].append(time.perf_counter() - start)
            grown = _resident()
            if held is not None and grown is not None:
                one["peak_bytes"] = max(one["peak_bytes"] or 0, grown - held)
    return [{"seconds": statistics.median(one["rounds"]), **one} for one in found]


def _resident(reset: bool = False) -> int | None:
    """The most bytes that this process held since the last reset; None where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def _measure_file(folder: Path, symbols: int, rows: int, rounds: int) -> dict[str, Any]:
    from hpcrl.market.bars import ARRAYS
    from hpcrl.market.features import BURN_IN
    from hpcrl.market.stage import stage_synthetic
    from hpcrl.market.store import read_store, write_store

    path, ours, plain = (folder / name for name in ("market.h5", "ours.h5", "plain.h5"))
    names = tuple(f"S{number}" for number in range(symbols))
    bars, header = read_store(stage_synthetic(path, symbols=names, bars=rows - BURN_IN).path)
    array_bytes = sum(getattr(one, name).nbytes for one in bars.values() for name in ARRAYS)
    file_bytes = path.stat().st_size
    write = [
        _Task(lambda: write_store(ours, bars, header), lambda: ours.unlink(missing_ok=True)),
        _Task(lambda: _write_plainly(plain, bars.values()), lambda: plain.unlink(missing_ok=True)),
    ]
    found = {WRITE: _compare(_alternate(write, rounds), array_bytes)}
    for kind, before in ((DISK, lambda: _forget(path)), (CACHE, path.read_bytes)):
        read = [_Task(lambda: len(read_store(path)), before), _Task(lambda: len(path.read_bytes()), before)]
        found[kind] = _compare(_alternate(read, rounds), file_bytes)
    return {"symbols": symbols, "rows": rows, "array_bytes": array_bytes, "file_bytes": file_bytes} | found


def _compare(pair: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Ours beside the plain way: medians, and how many times as long ours takes (median over the rounds)."""
    ours, plain = pair
    return {
        "seconds": ours["seconds"],
        "mb_per_second": size / 1e6 / ours["seconds"],
        "plain_mb_per_second": size / 1e6 / plain["seconds"],
        "times_as_long": _ratio(ours["rounds"], plain["rounds"]),
        "peak_bytes": ours["peak_bytes"],
        "plain_peak_bytes": plain["peak_bytes"],
        "rounds": [ours["rounds"], plain["rounds"]],
    }


def _ratio(these: list[float], those: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def _write_plainly(path: Path, bars: Iterable[SymbolBars]) -> None:
    """The same arrays in the same chunks through the same filter, and nothing else."""
    import h5py
    import hdf5plugin

    from hpcrl.market.store import CHUNK_BYTES

    blosc = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
    with h5py.File(path, "w") as file:
        for one in bars:
            group = file.create_group(one.symbol)
            for name, array in one.arrays():
                data = array.T if name == "features" else array  # as they lie in memory and in our file
                rows = min(data.shape[-1], CHUNK_BYTES // data.itemsize)
                group.create_dataset(name, data=data, chunks=(*(1 for _ in data.shape[:-1]), rows), **blosc)


def _forget(path: Path) -> None:
    """Have the system drop what it keeps of the file in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _ways(secrets: Secrets, request: DatabaseRequest, folder: Path) -> dict[str, Callable[[], Source]]:
    """How to make a source of each kind that there are secrets for."""
    options = (request.tables, request.timeframe)
    ways: dict[str, Callable[[], Source]] = {}
    target = conninfo(secrets)
    if target is not None:
        from hpcrl.market.postgres import Postgres

        ways["postgres"] = lambda: Postgres(target, *options, timezone=request.timezone)
    url, key = secrets.supabase_url, secrets.supabase_key
    if url is not None and key is not None:
        from hpcrl.market.supabase import Supabase

        ways["supabase"] = lambda: Supabase(
            url,
            key,
            *options,
            Path(
                tempfile.mkdtemp(dir=folder)
            ),  # an empty one: else it would go on where the last one stopped
            timezone=request.timezone,
            indicators=False,
            page_rows=request.page_rows,
            connections=request.connections,
            requests_per_second=request.requests_per_second,
            patience_seconds=request.patience_seconds,
        )
    return ways


def _symbols(ways: dict[str, Callable[[], Source]], given: tuple[str, ...], most: int) -> tuple[str, ...]:
    """Those ``given``, else the first that the database has. HpcrlError: it cannot be read, or lacks one."""
    named: tuple[str, ...] = given
    for make in ways.values():
        with closing(make()) as source:
            source.open()
            if source.is_empty():
                raise HpcrlError(f"{source.kind}: the table of bars is empty; there is nothing to fetch")
            missing = [symbol for symbol in named if not source.count(symbol, Span())]
            there = source.symbols() if missing or not named else []
            if missing or (there == [] and not named):
                known = "" if there is None else f"; it has {', '.join(there) or 'none'}"
                wanted = ", ".join(missing) or "any symbol"
                raise HpcrlError(f"{source.kind}: no bars of {wanted} at this --timeframe{known}")
            named = named or tuple((there or [])[:most])
    if not named:
        raise HpcrlError("the database has too many symbols to list: name those to fetch with --names A,B")
    return named


def _measure_database(
    ways: dict[str, Callable[[], Source]], symbols: tuple[str, ...], rounds: int
) -> dict[str, Any]:
    tasks = [_Task(lambda make=make: _fetch(make(), symbols)) for make in ways.values()]  # type: ignore[misc]
    found = dict(zip(ways, _alternate(tasks, rounds), strict=True))
    rows = {kind: one.pop("result") for kind, one in found.items()}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{kind} {count:,}" for kind, count in rows.items())
        raise RunFailed(f"the two ways give different numbers of rows of {', '.join(symbols)}: {told}")
    for kind, one in found.items():
        one["rows_per_second"] = rows[kind] / one["seconds"]
    both = len(found) == 2
    ratio = _ratio(found["supabase"]["rounds"], found["postgres"]["rounds"]) if both else None
    return {"symbols": list(symbols), "rows": max(rows.values()), "ways": found, "copy_times_as_fast": ratio}


def _fetch(source: Source, symbols: tuple[str, ...]) -> int:
    """Rows of all symbols, from the connection to columns in memory."""
    with closing(source):
        source.open()
        source.prepare(dict.fromkeys(symbols, Span()), lambda *_: None)
        return sum(len(block["timestamp"]) for one in symbols for block in source.bars(one, Span()))


def render(result: dict[str, Any]) -> Table:
    """The result for a person."""
    host, arrays, file = result["machine"], result["array_bytes"] / 1e6, result["file_bytes"] / 1e6
    what = f"{result['symbols']} symbols of {result['rows']:,} bars, {arrays:,.0f} MB, in a file {file:,.0f}"
    table = Table(
        title=f"{what}\n{host['cpu']}, {host['cores']} cores, load {host['load_1min']}",
        caption="write: hashed and synced, beside plain h5py with blosc; read: hash checked, beside the "
        "plain bytes",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in ("rate", "beside it", "ratio", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in (WRITE, DISK, CACHE):
        one = result[kind]
        rates = (f"{one[name]:,.0f} MB/s" for name in ("mb_per_second", "plain_mb_per_second"))
        ratio = f"{one['times_as_long']:.2f} x as long"
        table.add_row(kind.replace("_", " "), *rates, ratio, _megabytes(one["peak_bytes"]))
    database = result["database"]
    for kind, one in database["ways"].items() if database else ():
        ratio = database["copy_times_as_fast"]
        table.add_row(
            "COPY" if kind == "postgres" else "PostgREST",
            f"{one['rows_per_second']:,.0f} rows/s",
            "",
            f"{ratio:,.1f} x as fast" if kind == "postgres" and ratio is not None else "",
            _megabytes(one["peak_bytes"]),
        )
    return table


def _megabytes(count: int | None) -> str:
    return "not told" if count is None else f"+{count / 1e6:,.0f} MB"
