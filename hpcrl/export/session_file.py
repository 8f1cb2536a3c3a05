"""A session's state as bytes: an NPZ (no pickle) that says which policy and symbols it is of."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping

import numpy as np

from hpcrl.export.metadata import Metadata
from hpcrl.types import HpcrlError

SCHEMA = 1
HEADER = "header"


def _header(metadata: Metadata, symbols: tuple[str, ...]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "policy": metadata.checkpoint["sha256"],
        "config": metadata.config_sha256,
        "symbols": list(symbols),
    }


def pack(arrays: Mapping[str, np.ndarray], metadata: Metadata, symbols: tuple[str, ...]) -> bytes:
    text = json.dumps(_header(metadata, symbols)).encode()
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **{HEADER: np.frombuffer(text, dtype=np.uint8)}, **arrays)
    return out.getvalue()


def unpack(
    saved: bytes,
    metadata: Metadata,
    symbols: tuple[str, ...],
    like: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """HpcrlError: no state of a session, that of another one, or arrays of other kinds than ``like`` has."""
    try:
        with np.load(io.BytesIO(saved), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop(HEADER).tobytes())
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:80]
        raise HpcrlError(f"the saved state is none of PolicySession.state() ({reason})") from None
    wanted = _header(metadata, symbols)
    for name, value in wanted.items():
        found = header.get(name) if isinstance(header, dict) else None
        if found != value:
            raise HpcrlError(f"the saved state is of another session: its {name} is {found}, not {value}")
    for name, one in (like or {}).items():
        other = arrays.get(name)
        if other is None or other.dtype != one.dtype or other.ndim != one.ndim:
            has = "missing" if other is None else f"{other.dtype} of {other.ndim} dimensions"
            raise HpcrlError(
                f"the saved state is of another version: {name} is {has}, "
                f"{one.dtype} of {one.ndim} was expected"
            )
    return arrays
