"""``write_report``: a run, a checkpoint or a population as one HTML page.

The page shows the validation split unless the test split is asked for: a page is looked at often, and the
sealed split is worth something only as long as nobody has chosen by it.
"""

from __future__ import annotations

import os
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from hpcrl.report.gather import SPLITS, Target, find_target, gather
from hpcrl.report.page import build_page
from hpcrl.storage.atomic import check_output, write_text
from hpcrl.types import HpcrlError, RunFailed


@dataclass(frozen=True)
class Written:
    path: Path
    warning: str
    """Why the page shows no evaluation; else empty."""


def write_report(
    run: str | Path,
    split: str = "validation",
    *,
    out: str | Path | None = None,
    epoch: int | None = None,
    data: str | Path | None = None,
    draws: int = 100,
) -> Written:
    """Write the page, whole or not at all: ``out``, or a name in the run's or the population's folder.

    HpcrlError, before anything is played: nothing to report there, an unknown split, a path that must not be
    written over. RunFailed: it cannot be written.
    """
    if split not in SPLITS:
        raise HpcrlError(f"split {split!r} is not known; a report shows one of {', '.join(SPLITS)}")
    target = find_target(run)
    path = page_path(target, split, out, epoch=epoch, data=data)
    found = gather(target, split, epoch=epoch, data=data, draws=draws)
    write_text(path, build_page(found))
    return Written(path, found.unplayed)


def page_path(
    target: Target, split: str, out: str | Path | None, *, epoch: int | None, data: str | Path | None
) -> Path:
    """Where the page goes; HpcrlError where it must not or cannot."""
    if out is not None:
        path = Path(out)
        if path.suffix.lower() not in (".html", ".htm"):
            raise HpcrlError(f"{path}: the report is a page; give it a name that ends in .html")
    else:
        parts = ["report", split]
        if epoch is not None:
            parts.append(f"epoch_{epoch}")
        elif target.path.is_file():
            parts.append(target.path.stem.removeprefix("checkpoint_"))
        if data is not None:
            parts.append(Path(data).stem)
        path = target.folder.absolute() / f"{'_'.join(parts)}.html"
    check_output(path, [target.path] if target.path.is_file() else [])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror or error}") from error
    if not os.access(path.parent, os.W_OK):
        raise HpcrlError(f"{path.parent}: must not be written to; name a file elsewhere with --out")
    return path


def open_page(path: Path) -> str:
    """Show it in the browser; a line that says what to do where there is none, else empty."""
    try:
        if webbrowser.open(path.absolute().as_uri()):
            return ""
    except webbrowser.Error:
        pass
    return f"no browser could be started here; open {path} in one, it needs nothing else"
