"""The command ``hpcrl``: verbs only. A verb parses, calls one function, prints the path that it made.

``cli_stage``, ``cli_bench`` and ``cli_pbt`` hold the verbs of ``hpcrl stage``, ``hpcrl bench`` and
``hpcrl pbt``; other ``cli_*`` a verb of their name each.

Exit codes: 0 done, 1 failed, 2 bad usage, config or input, 70 hung, 75 stopped early and resumable.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import hpcrl
from hpcrl.cli_bench import bench_app
from hpcrl.cli_compare import compare
from hpcrl.cli_evaluate import evaluate
from hpcrl.cli_export import bench_export, export
from hpcrl.cli_options import Json, Sets, UsageError, group, usage_words
from hpcrl.cli_pbt import pbt_app
from hpcrl.cli_report import report
from hpcrl.cli_rules import bench_rules
from hpcrl.cli_stage import stage_app
from hpcrl.cli_status import status
from hpcrl.cli_submit import submit
from hpcrl.cli_verify import verify
from hpcrl.cli_watch import watch
from hpcrl.types import HpcrlError, RunFailed

app = group(hpcrl.__doc__)
app.add_typer(stage_app, name="stage")
app.add_typer(bench_app, name="bench")
app.add_typer(pbt_app, name="pbt")
bench_app.command("export")(bench_export)
bench_app.command("rules")(bench_rules)
for verb in (verify, submit, status, watch, evaluate, compare, report, export):
    app.command()(verb)


def main() -> None:
    """Entry point: a user's mistake is one line, not a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        sys.exit(_run())
    except HpcrlError as error:
        from hpcrl.world.tell import tell

        tell(error, *_rank())
        sys.exit(error.exit_code)
    except OSError as error:  # a path that the system itself refuses
        where = f"{str(error.filename)[:200]}: " if error.filename else "a file or the standard output: "
        print(f"error: {where}{error.strerror or error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:  # the latter is how torch says it
        from hpcrl.world.memory import ran_out

        if not ran_out(error):
            raise
        said = str(error).partition("\n")[0] or "nothing is left"
        print(f"error: not enough memory: {said}", file=sys.stderr, flush=True)
        sys.exit(1)


def _run() -> int:
    """The exit code of the verb that the command line names; what it printed is out."""
    try:
        return int(app(prog_name="hpcrl", standalone_mode=False) or 0)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return UsageError.exit_code
        command = error.ctx.command_path if error.ctx else "hpcrl"
        raise HpcrlError(f"{usage_words(error)}; see {command} --help") from None
    finally:
        _flush()


def _flush() -> None:
    """Here, for what cannot be written at the interpreter's end is a traceback."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # | head has seen enough
            sys.exit(1)
        raise RunFailed(f"standard output: cannot be written: {error.strerror}") from None


def _rank() -> tuple[int, int, str]:
    """Rank, size and launcher as far as they can be told."""
    from hpcrl.world.ranks import read_ranks

    try:
        found = read_ranks()
        return found.rank, found.size, found.launcher
    except HpcrlError:
        return 0, 1, "none"


@app.command()
def train(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file, see yaml/.")] = None,
    sets: Sets = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Start so many local ranks; they are world_size.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a run, exactly.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="CHECKPOINT", help="New run from a run's or checkpoint's weights."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN", help="Begin in this prepared folder, or go on with its run."),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Although another process, say on a lost node, holds the run."),
    ] = False,
) -> None:
    """Train, as one process, as --ranks local ones, or as the rank that torchrun or srun gives."""
    from hpcrl.launch.job import Request, resolve, run_training
    from hpcrl.world.ranks import read_ranks

    request = Request(config, tuple(sets or ()), ranks, resume, init, run, take_over)
    given = read_ranks()
    if ranks is not None and ranks > 1 and given.launcher == "none":
        resolve(request, given)
        from hpcrl.launch.local import run_ranks

        sys.exit(run_ranks(ranks, sys.argv[1:]))
    sys.exit(run_training(request))


@app.command()
def replay(
    out: Annotated[Path, typer.Option("--out", help="Ledger to write: .json or .csv, one row per bar.")],
    case: Annotated[Path | None, typer.Option("--case", help="JSON: config, assets, bars, actions.")] = None,
    bars: Annotated[
        Path | None,
        typer.Option(
            "--bars",
            help="CSV or Parquet: timestamp, symbol, open, high, low, close, volume "
            "[, sigma, split, dividend, delist, halted].",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="CSV or Parquet: timestamp, symbol, weight; decided at that bar's close, holds until the "
            "symbol's next row.",
        ),
    ] = None,
    costs: Annotated[
        Path | None, typer.Option("--costs", help="YAML: the keys of a case's config, such as bps: 2.")
    ] = None,
) -> None:
    """Drive the simulator by a given table of weights: by --case, or by --bars, --weights and --costs.

    Timestamps: ISO 8601 (without a zone: UTC) or unix seconds. A CSV ledger holds bar, timestamp, cash,
    equity, equity_raw, fees, spread_cost, impact_cost, financing, dividends, reward, flags (joined by
    spaces) and, of each symbol S, position:S and the step's fill: qty:S, price:S, commission:S.
    """
    from hpcrl.evaluate.replay import replay_files

    replay_files(out, case, bars, weights, costs)
    print(out)


@app.command()
def audit(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file, see yaml/.")] = None,
    sets: Sets = None,
    earlier: Annotated[
        Path | None,
        typer.Option("--earlier", help="An older HDF5 file of the same data: was its past rewritten?"),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Plant leaks in a small market: each must be found.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look for leaks: does what the agent sees, or is paid, come from the future? Exit code 1: yes."""
    if self_test and (config is not None or sets or earlier is not None):
        raise HpcrlError(
            "--self-test plants leaks in a market of its own: it takes no --config, --set, --earlier"
        )
    if self_test:
        from hpcrl.audit.self_test import render_self_test as render
        from hpcrl.audit.self_test import self_test as run

        report = run()
        bad = not report["passed"]
    else:
        from hpcrl.audit.audit import audit_config, render

        report = audit_config(config, tuple(sets or ()), earlier)
        bad = report["verdict"] == "leak"
    if as_json:
        print(json.dumps(report))
    else:
        from rich.console import Console

        Console().print(render(report))
    sys.exit(1 if bad else 0)
