"""What a check found: pass, warn or fail, with the cause and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hpcrl.types import HpcrlError

Status = Literal["pass", "warn", "fail"]


class Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    status: Status
    found: str
    """The fact, or the cause."""
    fix: str = ""
    """What to do; "" where it passed."""
    seconds: float = 0.0


class Report(BaseModel):
    """What ``hpcrl verify --json`` prints; docs/verify.schema.json is its schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    hpcrl: str
    python: str
    status: Status
    """The worst of all findings."""
    findings: tuple[Finding, ...]


class Trouble(Exception):
    """Training would fail, or its result be wrong."""

    status: Status = "fail"

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.found, self.fix = found, fix


class Doubt(Trouble):
    """Training works, but the user should know."""

    status: Status = "warn"


def examine(name: str, check: Callable[[], str]) -> Finding:
    """Run one check: it returns what it found, or raises Trouble or Doubt. Whatever else it raises fails."""
    start = time.perf_counter()
    status: Status = "pass"
    fix = ""
    try:
        found = check()
    except Trouble as trouble:
        status, found, fix = trouble.status, trouble.found, trouble.fix
    except HpcrlError as error:
        status, found, fix = "fail", str(error), "the message says what would be right"
    except Exception as error:
        status, found = "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        fix = "this is not a known fault: report it with the output of hpcrl verify --json"
    seconds = round(time.perf_counter() - start, 3)
    return Finding(check=name, status=status, found=found, fix=fix, seconds=seconds)
