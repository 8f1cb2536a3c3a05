"""The market file that the config names, and the database that staging would read."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from hpcrl.config.root import Config
from hpcrl.config.secrets import read_secrets, redact
from hpcrl.config.tables import Tables
from hpcrl.market.dataset import Market
from hpcrl.market.load import load_market
from hpcrl.market.source import Unreachable
from hpcrl.market.supabase import Supabase
from hpcrl.types import HpcrlError
from hpcrl.verify.finding import Doubt, Trouble

PATIENCE = 5.0
"""Seconds that a request may fail."""


def read_data(config: Config) -> Market:
    """The file, its contents checked against its hash. Trouble where training could not read it."""
    path = Path(config.market.path)
    if not path.is_file():
        raise Trouble(
            f"market.path = {config.market.path}: no such file",
            "stage it: hpcrl stage supabase, hpcrl stage files or hpcrl stage synthetic, each with --out",
        )
    try:
        return load_market(config.market)
    except HpcrlError as error:
        raise Trouble(str(error), "stage the file anew, or name another one with market.path") from None


def check_data(config: Config, market: Market) -> str:
    """Enough bars in each split, and where they come from."""
    try:
        market.require("train", config.episode_steps, config.env.fill_lag)
    except HpcrlError as error:
        raise Trouble(str(error), "stage more bars, or lower learn.rollout or env.episode_rollouts") from None
    bars = {}
    for split in ("train", "validation", "test"):
        lo, hi = market.split_range(split, config.env.fill_lag)  # type: ignore[arg-type]
        bars[split] = hi - lo
    said = (
        f"{config.market.path}: {market.n_bars:,} bars of {', '.join(market.symbols)}, source "
        f"{market.source}, sha256 {market.sha256[:12]}; "
        + ", ".join(f"{split} {count:,}" for split, count in bars.items())
    )
    if market.made_up:
        raise Doubt(f"NO REAL DATA: {said}", "stage real bars before you believe any result")
    if short := [split for split in ("validation", "test") if bars[split] < 2]:
        raise Doubt(
            f"{said}: nothing to evaluate on in {' and '.join(short)}",
            "a larger market.validation_fraction, or a smaller market.train_fraction",
        )
    return said


def check_database(folder: Path) -> str:
    """Whether hpcrl stage supabase would find real bars. A missing one is a warning: files suffice."""
    secrets = read_secrets(folder, names=("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"))
    fallback = "hpcrl stage supabase would fall back to 1,000 made-up bars"
    if secrets.supabase_url is None or secrets.supabase_key is None:
        raise Doubt(
            f"SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY are not both set: {fallback}",
            "set both in the environment or in a .env of mode 600; not needed where files are staged",
        )
    spool = folder / ".verify.parts"  # made only where rows are fetched
    tables = Tables()
    source = Supabase(
        secrets.supabase_url, secrets.supabase_key, tables, "5Min", spool, patience_seconds=PATIENCE
    )
    try:
        with closing(source):
            source.open()
            empty = source.is_empty()
    except Unreachable as error:
        raise Doubt(
            f"{redact(str(error), secrets)}: {fallback}",
            "compute nodes often reach no network: stage on a login node, or as a job where it is reached",
        ) from None
    except HpcrlError as error:
        raise Trouble(redact(str(error), secrets), "the message says what would be right") from None
    if empty:
        raise Doubt(f"the table {tables.bars.table} holds no row: {fallback}", "fill it: hpcrl stage push")
    return f"the table {tables.bars.table} answers"
