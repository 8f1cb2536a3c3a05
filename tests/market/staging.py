"""What the tests of staging from a database share: bars, the command, what must hold afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from servers.postgrest import COLUMNS, Postgrest, load_bars

from hpcrl.market.store import read_store

ROOT = Path(__file__).resolve().parents[2]
SECRET_NAMES = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "DATABASE_URL", "PGPASSWORD", "PGPASSFILE")
SYMBOLS = ("AAA/USD", "BBB/USD", "CCC/USD", "DDD/USD", "EEE/USD", "FFF/USD")


def walk(rows: int, symbols: Sequence[str] = SYMBOLS[:3], seed: int = 0) -> pd.DataFrame:
    """Walks on the 24/7 grid, symbol by symbol; numbers with all their bits in use."""
    frames = []
    for at, symbol in enumerate(symbols):
        rng = np.random.default_rng([seed, at])
        close = 100 * np.exp(np.cumsum(0.002 * rng.standard_normal(rows)))
        open_ = np.r_[100.0, close[:-1]] * np.exp(0.0003 * rng.standard_normal(rows))
        frames.append(
            pd.DataFrame(
                {
                    "timestamp": pd.date_range("2023-03-01", periods=rows, freq="5min", tz="UTC"),
                    "symbol": symbol,
                    "open": open_,
                    "high": np.maximum(open_, close) * 1.001,
                    "low": np.minimum(open_, close) * 0.999,
                    "close": close,
                    "volume": rng.uniform(10, 1000, rows),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def loaded(server: Postgrest, rows: int = 2500, symbols: Sequence[str] = SYMBOLS[:3]) -> pd.DataFrame:
    """Bars that now stand in the server's database."""
    frame = walk(rows, symbols)
    load_bars(server.conninfo, frame)
    return frame


def arguments(verb: str, out: Path, symbols: Sequence[str] = SYMBOLS[:3], *more: object) -> list[str]:
    """Of ``hpcrl``: all rows of the symbols, gently to the clock: little patience, no limit of rate."""
    given = ["stage", verb, "--symbols", ",".join(symbols), "--calendar", "24/7"]
    given += ["--out", str(out), "--no-coverage"]
    if verb == "supabase":
        given += ["--patience", "20", "--requests-per-second", "1000"]
    return [*given, *map(str, more)]


def environment(server: Postgrest | None = None, **more: str) -> dict[str, str]:
    """This process's, without any secret but those of ``server`` and ``more``."""
    found = {name: value for name, value in os.environ.items() if name not in SECRET_NAMES}
    found |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if server is not None:
        found |= {"SUPABASE_URL": server.url, "SUPABASE_SERVICE_ROLE_KEY": server.key}
    return found | more


def start(args: Sequence[str], env: Mapping[str, str], folder: Path) -> subprocess.Popen[str]:
    """A real ``hpcrl`` process."""
    return subprocess.Popen(
        [sys.executable, "-m", "hpcrl", *args],
        cwd=folder,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_complete(path: Path, frame: pd.DataFrame, source: str = "supabase") -> str:
    """Every bar of ``frame`` is in the file to the last bit, and no other; its sha256."""
    found, header = read_store(path)
    assert header["source"] == source
    assert set(found) == set(frame["symbol"])
    for symbol, rows in frame.groupby("symbol"):
        bars = found[str(symbol)]
        there = bars.present
        stamps = pd.DatetimeIndex(rows["timestamp"]).as_unit("ns").asi8
        assert np.array_equal(bars.ts[there], stamps), symbol
        for name in COLUMNS:
            value = getattr(bars, name)[there]
            assert np.array_equal(value.view(np.int64), rows[name].to_numpy().view(np.int64)), (symbol, name)
    return str(header["sha256"])


def leftovers(folder: Path, spool: bool = True) -> list[str]:
    """Files under ``folder``, but for what waits in a spool."""
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in files if not (spool and Path(name).parts[0].endswith(".parts")))


def check_failed(code: int, err: str, folder: Path, *reasons: str, exit_code: int = 1) -> None:
    """It told the reasons, and there is neither a file nor the fallback's."""
    assert code == exit_code, err
    assert leftovers(folder) == []
    assert "synthetic" not in err
    for reason in reasons:
        assert reason in err, err
