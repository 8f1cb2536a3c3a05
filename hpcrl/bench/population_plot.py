"""The picture of ``hpcrl bench pbt``: share of the oracle of every fixed rate, and of the population."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from hpcrl.bench.population import SeedResult
from hpcrl.storage.atomic import write_bytes


def told(result: SeedResult) -> None:
    """A line on stderr as a seed ends."""
    fixed = ", ".join(f"{each.first_lr:.1e}: {each.share:.3f}" for each in result.fixed)
    print(
        f"seed {result.seed}: population {result.chosen.share:.3f} +- {result.chosen.error:.3f} (member "
        f"{result.best}, {result.exploits} exploits); fixed rates {fixed}",
        file=sys.stderr,
        flush=True,
    )


def write_spread(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours = ("#1f5fa8", "#d17a22", "#4b8b3b", "#7d4fa0", "#8a8f98")
    for row, colour in zip(result["seeds"], colours, strict=False):
        fixed = sorted(row["fixed"], key=lambda each: each["first_lr"])
        rates = [each["first_lr"] for each in fixed]
        shares = [each["share"] for each in fixed]
        axes.plot(
            rates, shares, "o--", color=colour, linewidth=1, markersize=5, label=f"fixed, seed {row['seed']}"
        )
        chosen = next(each for each in row["population"] if each["member"] == row["best"])
        axes.errorbar(
            chosen["last_lr"], chosen["share"], yerr=2 * chosen["error"], fmt="*", color=colour,
            markersize=14, markeredgecolor="black", label=f"population's best, seed {row['seed']}",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (of the population: the last one)")
    axes.set_ylabel("share of the oracle's reward, fresh bars")
    axes.set_title(
        f"{result['spread']['task']}: a population and the fixed rates that it starts from", fontsize=10
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())
