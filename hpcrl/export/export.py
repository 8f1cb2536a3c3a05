"""``export_policy``: a run's checkpoint as one ONNX file that says what it is and was seen to be right.

Nothing is written unless the graph agrees with the policy (``verify``). The run's own data is needed: for
the calendar, the features' definitions, and real tokens to compare on.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hpcrl
from hpcrl.checkpoint.load import LoadedRun, load_data, load_run
from hpcrl.config.policy import PolicyConfig
from hpcrl.config.secrets import without_secrets
from hpcrl.env.simulator import Simulator
from hpcrl.env.token import entry_names
from hpcrl.export.metadata import LARGEST, FeatureNote, Metadata, open_bytes, read_metadata
from hpcrl.export.onnx_model import memory_notes, streaming_step, to_onnx
from hpcrl.export.verify import Differences, verify
from hpcrl.market.calendar import ALWAYS, DAY_NS, SECOND_NS, find_sessions
from hpcrl.market.dataset import Market
from hpcrl.market.scaler import identity_scaler
from hpcrl.policy import Policy
from hpcrl.storage.atomic import check_output, sha256_of, write_bytes
from hpcrl.types import HpcrlError, RunFailed

AHEAD_DAYS = (366, 180, 90, 31, 7, 0)
"""How far sessions reach beyond the export: as far as the exchange's calendar is known, at most a year."""
ROOM = 64 << 20
"""Bytes of a file that are no weights: rotary tables, sessions, nodes (a guess, far too large)."""


@dataclass(frozen=True)
class Exported:
    path: Path
    metadata: Metadata
    differences: Differences
    sha256: str
    bytes: int
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "run": self.metadata.run,
            "epoch": self.metadata.epoch,
            "differences": asdict(self.differences),
            "warnings": list(self.warnings),
            "seconds": self.seconds,
        }


def export_policy(
    run: str | Path, out: str | Path, *, epoch: int | None = None, data: str | Path | None = None
) -> Exported:
    """``run``: a run folder or a checkpoint file; ``data``: where the run's own data lies now.

    HpcrlError: no whole checkpoint, other data than the run's, ``out`` is an input or in no folder.
    RunFailed: a broken checkpoint, or a graph that differs from the policy.
    """
    began = time.monotonic()
    out = Path(out)
    _check_out(out, Path(run))
    loaded = load_run(run, epoch=epoch)
    market = _own_data(loaded, data)
    check_output(out, [loaded.checkpoint, data or loaded.data_path])
    assert isinstance(loaded.policy, Policy)
    _check_size(sum(weight.numel() for weight in loaded.policy.parameters()), loaded.checkpoint)
    step = streaming_step(loaded.policy, loaded.scaler, loaded.n_entries)
    model = to_onnx(step, loaded.n_entries)
    metadata = describe(loaded, market, memory=memory_notes(step))
    content = _with_metadata(model, metadata)
    session = open_bytes(content, out)
    read_metadata(session, out)
    seen = verify(loaded.policy, loaded.scaler, session, metadata, market, loaded.config.env)
    metadata = replace(metadata, differences=asdict(seen))
    content = _with_metadata(model, metadata)
    write_bytes(out, content)
    seconds = round(time.monotonic() - began, 3)
    return Exported(out, metadata, seen, sha256_of(out), len(content), loaded.warnings, seconds)


def _check_out(out: Path, run: Path) -> None:
    if out.suffix != ".onnx":
        raise HpcrlError(f"--out {out}: a file name that ends in .onnx was expected")
    check_output(out, [run] if run.is_file() else ())
    if not out.absolute().parent.is_dir():
        raise HpcrlError(f"--out {out}: there is no folder {out.parent}; make it first")


def _check_size(parameters: int, checkpoint: Path) -> None:
    """HpcrlError where float32 weights do not fit into one ONNX file."""
    if 4 * parameters > LARGEST - ROOM:
        raise HpcrlError(
            f"{checkpoint}: {parameters:,} parameters take {4 * parameters / 2**30:.1f} GiB; one ONNX file "
            f"holds less than {LARGEST >> 30} GiB"
        )


def _own_data(loaded: LoadedRun, data: str | Path | None) -> Market:
    market = load_data(loaded, data)
    if market.sha256 != loaded.data_sha256:
        raise HpcrlError(
            f"{data} is not the run's data: its sha256 is {market.sha256[:12]}..., the run was trained on "
            f"{loaded.data_sha256[:12]}...; an export describes the run's own data"
        )
    return market


def _with_metadata(model: Any, metadata: Metadata) -> bytes:
    del model.metadata_props[:]
    for key, value in metadata.props().items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))


def describe(loaded: LoadedRun, market: Market, memory: tuple) -> Metadata:
    """What the file will say of itself; the differences are not seen yet."""
    config = loaded.config
    header = market.attributes
    probe = _probe(loaded, market)
    sessions, days, timezone = session_list(header["calendar"], market.bar_seconds, int(market.ts_B[0]))
    definitions = header["feature_definitions"]
    return Metadata(
        version=hpcrl.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=loaded.name,
        checkpoint={"name": loaded.checkpoint.name, "sha256": sha256_of(loaded.checkpoint)},
        epoch=loaded.epoch,
        env_steps=loaded.env_steps,
        model_type=config.policy.model_type,
        precision="float32",
        config=without_secrets(config.model_dump(mode="json")),
        config_sha256=config.digest(),
        data=without_secrets(
            {"source": market.source, "sha256": loaded.data_sha256, "path": loaded.data_path}
        ),
        synthetic=market.made_up,
        symbols=market.symbols,
        assets=config.env.assets,
        n_assets=loaded.n_assets,
        n_entries=loaded.n_entries,
        entry_names=tuple(
            entry_names(market.feature_names, market.symbols[: loaded.n_assets], probe.reward_entries)
        ),
        features=tuple(FeatureNote(name, definitions[name]) for name in market.feature_names),
        bar_seconds=market.bar_seconds,
        calendar=header["calendar"],
        timezone=timezone,
        sessions=sessions,
        session_days=days,
        history=config.policy.padded_history,
        burn_in=int(header["burn_in"]),
        distribution=distribution_note(config.policy),
        memory=memory,
        differences={},
    )


def _probe(loaded: LoadedRun, market: Market) -> Simulator:
    """HpcrlError where the data gives other tokens than the policy reads."""
    tensors = market.to("cpu", identity_scaler(market.feature_names))
    bars = (0, market.n_bars)
    probe = Simulator(tensors, loaded.config.env, env_ids_N=torch.arange(1), seed=0, bars=bars, history=1)
    if (probe.n_entries, probe.n_assets) != (loaded.n_entries, loaded.n_assets):
        raise RunFailed(
            f"{loaded.checkpoint}: reads tokens of {loaded.n_entries} entries for {loaded.n_assets} assets, "
            f"its data and config give {probe.n_entries} for {probe.n_assets}"
        )
    return probe


def distribution_note(config: PolicyConfig) -> dict[str, Any]:
    if config.head == "discrete":
        return {"kind": "discrete", "positions": list(config.positions)}
    return {"kind": "continuous", "low": config.weight_low, "high": config.weight_high}


def session_list(
    calendar: str, bar_seconds: int, first: int
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...], str]:
    """Uninterrupted parts of sessions [open, close) in unix seconds from the session of ``first`` on, the
    date of each in days since 1970-01-01, and the exchange's time zone. None for a market that never closes.
    """
    if calendar == ALWAYS:
        return (), (), "UTC"
    import exchange_calendars as xc

    now = max(int(time.time()), first)
    for days in AHEAD_DAYS:
        try:
            found = find_sessions(calendar, bar_seconds, first * SECOND_NS, now * SECOND_NS + days * DAY_NS)
            break
        except HpcrlError:  # no exchange's holidays are known for ever
            if days == AHEAD_DAYS[-1]:
                raise
    on = np.flatnonzero(found.day_P >= found.day_P[np.searchsorted(found.stop_P, first * SECOND_NS, "right")])
    opens, closes = found.start_P[on] // SECOND_NS, found.stop_P[on] // SECOND_NS
    parts = tuple(zip(opens.tolist(), closes.tolist(), strict=True))
    return parts, tuple(found.day_P[on].tolist()), str(xc.get_calendar(calendar).tz)
