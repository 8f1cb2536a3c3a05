"""Vendors' files: CSV and Parquet, one file or a folder of them, read into one raw table.

Owns reading and naming rows: each row keeps its file and line (CSV) or row number (Parquet), so that a
later verdict can name it. Values stay as found; ``clean`` judges them. Refuses files that cannot be
parsed as a table, and missing or doubled columns.
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpcrl.types import HpcrlError

REQUIRED = ("timestamp", "symbol", "open", "high", "low", "close", "volume")
OPTIONAL = ("split", "dividend", "delist")
SUFFIXES = (".csv", ".parquet", ".pq")
# Before 3.1 pandas' default parser missed the last bit of some prices; since then the option is deprecated.
_PANDAS = tuple(int(part) for part in pd.__version__.split(".")[:2])
_EXACT_FLOATS: dict[str, Any] = {} if _PANDAS >= (3, 1) else {"float_precision": "round_trip"}


def read_files(path: str | Path, features: tuple[str, ...] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Read ``path`` (a file, or a folder's CSV and Parquet files in order of name).

    Returns the raw table (required, optional and feature columns, plus ``_file``, ``_line``) and the names
    of the files. HpcrlError names the file and what is wrong with it.
    """
    files = list_files(Path(path))
    frames = []
    for number, file in enumerate(files):
        frame = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
        frame = pick_columns(frame, features, str(file))
        frame["_file"] = np.full(len(frame), number, dtype=np.int32)
        frames.append(frame)
    # Only some of the files may have an optional column; concat fills the others with NaN, the default.
    return pd.concat(frames, ignore_index=True), [str(file) for file in files]


def read_table(path: str | Path) -> pd.DataFrame:
    """One CSV or Parquet file as it stands, with ``_line``; the cells of a CSV are text, empty ones NaN.

    HpcrlError as ``read_files``, and for a CSV line with too few fields: a file that was cut off.
    """
    path = Path(path)
    if path.is_dir():
        raise HpcrlError(f"{path}: is a folder; name one CSV or Parquet file")
    [file] = list_files(path)
    if file.suffix.lower() != ".csv":
        return _read_parquet(file)
    _check_fields(file)
    return _read_csv(file, all_text=True)


def pick_columns(frame: pd.DataFrame, features: tuple[str, ...], name: str) -> pd.DataFrame:
    """The columns that are used, in a fixed order. HpcrlError lists those found and those needed."""
    found = [str(column) for column in frame.columns if not str(column).startswith("_")]
    needed = [*REQUIRED, *features]
    missing = [column for column in needed if column not in found]
    if missing:
        raise HpcrlError(
            f"{name}: missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"needed: {', '.join(needed)}; found: {', '.join(found) or 'none'}"
        )
    optional = [column for column in OPTIONAL if column in found and column not in features]
    if frame.empty:
        raise HpcrlError(f"{name}: has a header but no rows")
    _check_symbols(frame["symbol"], name)
    lines = ["_line"] if "_line" in frame.columns else []
    return frame[[*needed, *optional, *lines]].copy()


def _check_symbols(column: pd.Series, name: str) -> None:
    """Text (or whole numbers, as Tokyo's codes): a list or bytes would become a name that nobody gave."""
    cells = column.dropna()
    if column.dtype == object:
        cells = cells[~cells.map(lambda cell: isinstance(cell, (str, int)) and not isinstance(cell, bool))]
    elif not pd.api.types.is_bool_dtype(column):
        return
    if len(cells):
        raise HpcrlError(f"{name}: symbol {cells.iloc[0]!r:.60} is no text; name the symbol, such as MSFT")


def list_files(path: Path) -> list[Path]:
    """The files that ``read_files`` reads. HpcrlError: none there, or of a kind that is not read."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise HpcrlError(f"{path}: no CSV or Parquet files in this folder")
        return files
    if not path.exists():
        raise HpcrlError(f"{path}: no such file or folder")
    if path.suffix.lower() not in SUFFIXES:
        raise HpcrlError(
            f"{path}: unknown kind of file {path.suffix!r}; CSV (.csv) and Parquet (.parquet) are read"
        )
    return [path]


def _read_csv(file: Path, all_text: bool = False) -> pd.DataFrame:
    _check_header(file)
    text: Any = str if all_text else {"timestamp": str, "symbol": str}
    try:
        with warnings.catch_warnings():
            # pandas only warns when rows have more fields than the header, and then drops the rest.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                file,
                dtype=text,
                index_col=False,
                # A symbol may be called NA or NULL: only an empty field is missing.
                keep_default_na=False,
                na_values=[""],
                skip_blank_lines=False,
                low_memory=False,
                **_EXACT_FLOATS,
            )
    except pd.errors.EmptyDataError:
        raise HpcrlError(f"{file}: the file is empty") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError, csv.Error) as error:
        raise HpcrlError(f"{file}: not a readable CSV table: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise HpcrlError(f"{file}: cannot be read: {error.strerror or error}") from None
    frame.columns = [str(column).strip() for column in frame.columns]
    frame["_line"] = np.arange(2, len(frame) + 2, dtype=np.int64)
    blank = frame.drop(columns="_line").isna().all(axis=1)
    return frame[~blank] if blank.any() else frame


def _check_fields(file: Path) -> None:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream)
            wanted = len(next(rows, []))
            for row in rows:
                if row and len(row) != wanted:
                    where = f"{file}, line {rows.line_num}"
                    raise HpcrlError(f"{where}: {len(row)} fields, but the header names {wanted}")
    except UnicodeDecodeError as error:
        raise HpcrlError(f"{file}: not a readable CSV table: {error}") from None
    except (OSError, csv.Error) as error:
        raise HpcrlError(f"{file}: cannot be read: {error}") from None


def _check_header(file: Path) -> None:
    """pandas renames a doubled column without a word; the second would be lost."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            names = [name.strip() for name in next(csv.reader(stream), [])]
    except UnicodeDecodeError as error:
        raise HpcrlError(f"{file}: not a readable CSV table: {error}") from None
    except (OSError, csv.Error) as error:
        raise HpcrlError(f"{file}: cannot be read: {error}") from None
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise HpcrlError(f"{file}: the header names {', '.join(doubled)} more than once")


def _read_parquet(file: Path) -> pd.DataFrame:
    import pyarrow as pa

    try:
        frame = pd.read_parquet(file, engine="pyarrow")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise HpcrlError(f"{file}: not a readable Parquet file: {' '.join(str(error).split())}") from None
    if any(name is not None and name in REQUIRED for name in frame.index.names):
        frame = frame.reset_index()
    if frame.columns.duplicated().any():
        raise HpcrlError(f"{file}: a column name occurs more than once")
    frame["_line"] = np.arange(1, len(frame) + 1, dtype=np.int64)
    return frame
