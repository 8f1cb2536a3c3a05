"""The results of ``hpcrl bench learn``: table, JSON, page of documentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hpcrl.bench import learn
from hpcrl.bench.machine import machine
from hpcrl.storage.atomic import check_output, write_text

COLUMNS = ("task", "seeds", "env steps", "share", "must", "goal", "reward a bar", "turnover", "met")


def measure(
    task: str,
    seeds: int,
    config: Path,
    overrides: tuple[str, ...],
    *,
    jobs: int,
    report: Path | None,
    as_json: bool,
    size: learn.Size = learn.Size(),
) -> bool:
    """Run, print the table or one JSON object (of one task, or of all under ``tasks``), write ``report``.

    Returns whether every task met its demand. Each run's end is told on stderr.
    """
    if report is not None:
        check_output(report, [config])
    made = machine() | {"command": " ".join(["hpcrl", *sys.argv[1:]])}
    results = learn.bench_learn(
        learn.tasks_of(task), seeds, config_path=config, overrides=overrides, jobs=jobs, size=size, told=_tell
    )
    if as_json:
        shown = results[0] if len(results) == 1 else {"tasks": results}
        print(json.dumps(shown | {"machine": made}))
    else:
        Console().print(render(results))
    if report is not None:
        write_text(report, page(results, made))
        print(report, file=sys.stderr if as_json else sys.stdout)
    return all(result["passed"] for result in results)


def _tell(task: str, result: learn.SeedResult) -> None:
    share = "no share" if result.share is None else f"share {result.share:.3f} +- {result.share_error:.3f}"
    rate = result.steps / result.train_seconds
    print(
        f"{task} seed {result.seed}: {share}, reward {result.reward:.2e} +- {result.reward_error:.0e}, "
        f"turnover {result.turnover:.3f}, {result.steps:,} env steps at {rate:,.0f}/s",
        file=sys.stderr,
        flush=True,
    )


def render(results: list[dict[str, Any]]) -> Table:
    """One row a task, for a person."""
    table = Table(title="share of the oracle on fresh bars, last policy, deterministic")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "task" else "right")
    for result in results:
        table.add_row(*_cells(result))
    return table


def _cells(result: dict[str, Any]) -> list[str]:
    seeds = result["seeds"]
    share = "-"
    if result["share"] is not None:
        by_seed = ", ".join(f"{s['share']:.3f} +- {s['share_error']:.3f}" for s in seeds)
        share = f"{result['share']:.3f} ({by_seed})"
    error = max(s["reward_error"] for s in seeds)
    limits = ["-" if result[key] is None else f"{result[key]:g}" for key in ("must", "goal")]
    return [
        result["task"],
        ", ".join(str(s["seed"]) for s in seeds),
        f"{seeds[0]['steps']:,}",
        share,
        *limits,
        f"{result['reward']:.2e} +- {error:.0e}",
        f"{result['turnover']:.3f}",
        "yes" if result["passed"] else "NO",
    ]


def page(results: list[dict[str, Any]], made: dict[str, Any]) -> str:
    """The same as a page of documentation (Markdown); ``made``: by ``machine``, and the command."""
    lines = [
        "# Learnability: what the agent learns of what can be learnt",
        "",
        f"{made['date']}, commit {made['commit'][:7] or 'unknown'}, {made['cpu']}, {made['cores']} cores, "
        f"torch {made['torch']}. Made by `{made['command']}`.",
        "",
        (learn.__doc__ or "").split("\n\n", 1)[1].strip(),
        "The shares of the single seeds stand in brackets, with their standard errors. Rewards are log",
        "returns a bar, with the standard error of one seed.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(_cells(result)) + " |" for result in results]
    return "\n".join(lines) + "\n"
