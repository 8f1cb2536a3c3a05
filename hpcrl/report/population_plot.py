"""The pictures of a population: objective.png, hyperparameters.png, lineage.png."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpcrl.market.synthetic import made_up
from hpcrl.pbt.history import Past, best_of, data_source, read_past
from hpcrl.pbt.population import Population
from hpcrl.report.population_curves import draw_hyperparameters, draw_objective
from hpcrl.report.population_lineage import draw_lineage
from hpcrl.storage.atomic import check_output, write_bytes
from hpcrl.types import HpcrlError, RunFailed

Draw = Callable[[Any, Population, Sequence[Past]], None]


def write_plots(population: Population, folder: Path | None = None) -> list[Path]:
    """Write the PNGs, each whole or not at all, into ``folder`` or the population's own; their paths.

    HpcrlError: no member has published yet, or a file cannot come into being there.
    """
    folder = (folder or population.path).absolute()
    past = read_past(population)
    if best_of(past) is None:
        raise HpcrlError(f"{population.path}: no member has published a generation yet: nothing to draw")
    rows = len(population.pbt.space)
    rows = rows if rows <= 4 else math.ceil(rows / 2)
    pictures: list[tuple[str, Draw, float]] = [
        ("objective.png", draw_objective, 6.4),
        ("hyperparameters.png", draw_hyperparameters, 1.4 + 2.1 * rows),
        ("lineage.png", draw_lineage, 2.0 + 0.36 * len(past)),
    ]
    for name, _, _ in pictures:
        check_output(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot write {folder}: {error.strerror or error}") from error
    for name, draw, inches in pictures:
        write_bytes(folder / name, _png(draw, population, past, inches))
    return [folder / name for name, _, _ in pictures]


def _png(draw: Draw, population: Population, past: Sequence[Past], inches: float) -> bytes:
    # A figure of its own, not pyplot's: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, inches), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, population, past)
    figure.suptitle(_title(population, past), fontsize=11, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _title(population: Population, past: Sequence[Past]) -> str:
    best = best_of(past)
    assert best is not None
    exploits = sum(one.exploits for one in past)
    copies = "1 copy" if exploits == 1 else f"{exploits} copies"
    source = data_source(population)
    words = "" if source is None else f"  |  data source: {source}"
    words += " (made-up bars: no performance claim)" if source is not None and made_up(source) else ""
    return (
        f"{population.path.name}  |  {len(past)} members, {copies}{words}\n"
        f"best: member {best.member}, generation {best.generation} of {population.generations}, objective "
        f"{best.objective:.3g} \N{PLUS-MINUS SIGN} {best.spread:.2g}"
    )
