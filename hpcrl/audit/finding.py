"""What a check says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

Verdict = Literal["pass", "warning", "leak", "skipped"]


@dataclass(frozen=True)
class Finding:
    """``evidence``: what was looked at, and where it is not a pass the first bar, symbol and values."""

    check: str
    verdict: Verdict
    evidence: str
    advice: str = ""
    where: dict[str, Any] = field(default_factory=dict)
    """For programs: bar, symbol, feature and values, as far as the finding has them."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def stamp(seconds: float) -> str:
    """Unix seconds as 2022-04-18T16:00:00Z."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
