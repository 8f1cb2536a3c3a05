"""The command ``hpcrl``: verbs only. A verb parses, calls one function, prints the path that it made.

Exit codes: 0 done, 1 failed, 2 bad usage, config or input, 75 stopped early and resumable.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import hpcrl
from hpcrl.types import HpcrlError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=hpcrl.__doc__
)
stage_app = typer.Typer(no_args_is_help=True, help="Stage market bars into one immutable HDF5 file.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed, as ratios and splits of one run.")
app.add_typer(stage_app, name="stage")
app.add_typer(bench_app, name="bench")

Out = Annotated[Path, typer.Option("--out", help="HDF5 file to make.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key.")]


def main() -> None:
    """Entry point: a user's mistake is one line, not a traceback."""
    try:
        app()
    except HpcrlError as error:
        from hpcrl.world.tell import tell

        tell(error, *_rank())
        sys.exit(error.exit_code)
    except OSError as error:  # a path that the system itself refuses
        where = f"{str(error.filename)[:200]}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr, flush=True)
        sys.exit(1)


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
) -> None:
    """Train, as one process, as --ranks local ones, or as the rank that torchrun or srun gives."""
    from hpcrl.launch.job import Request, resolve, run_training
    from hpcrl.world.ranks import read_ranks

    request = Request(config, tuple(sets or ()), ranks, resume, init)
    given = read_ranks()
    if ranks is not None and ranks > 1 and given.launcher == "none":
        resolve(request, given)
        from hpcrl.launch.local import run_ranks

        sys.exit(run_ranks(ranks, sys.argv[1:]))
    sys.exit(run_training(request))


@stage_app.command("files")
def stage_files(
    path: Annotated[Path, typer.Option("--path", help="A CSV or Parquet file, or a folder of them.")],
    out: Out,
    calendar: Annotated[str, typer.Option(help="Exchange calendar, or 24/7.")] = "XNYS",
    bar_seconds: Annotated[int, typer.Option(help="Seconds of a bar.")] = 300,
    features: Annotated[str, typer.Option(help="Further numeric columns as features: a,b")] = "",
    symbols: Annotated[str, typer.Option(help="Only these symbols: A,B")] = "",
    timezone: Annotated[str | None, typer.Option(help="Zone of timestamps that carry none.")] = None,
    computed: Annotated[bool, typer.Option(help="Compute the built-in features.")] = True,
    price_adjustment: Annotated[
        str, typer.Option(help="unknown, unadjusted, splits or splits_dividends.")
    ] = "unknown",
    strict: Annotated[bool, typer.Option("--strict", help="Reject what would be dropped.")] = False,
    as_json: Json = False,
) -> None:
    """CSV and Parquet: columns timestamp, symbol, open, high, low, close, volume."""
    from hpcrl.market.stage import stage_files as run

    result = run(
        path,
        out,
        calendar=calendar,
        bar_seconds=bar_seconds,
        features=_names(features),
        symbols=_names(symbols),
        timezone=timezone,
        computed=computed,
        price_adjustment=price_adjustment,
        strict=strict,
    )
    _print_staged(result, as_json)


@stage_app.command("synthetic")
def stage_synthetic(
    out: Out,
    symbols: Annotated[str, typer.Option(help="A,B,...")] = "AAPL,MSFT,GOOGL,TSLA,NVDA,AMZN",
    bars: Annotated[int, typer.Option(min=1, help="Tradable bars per symbol; burn-in comes on top.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """A random walk: for first steps and tests; no performance claim follows from it."""
    from hpcrl.market.stage import stage_synthetic as run

    _print_staged(run(out, symbols=_names(symbols), bars=bars, seed=seed), as_json)


@stage_app.command("planted")
def stage_planted(
    out: Out,
    task: Annotated[str, typer.Option(help="L0, L1, L2, L3, L4, L4b, L5 or control.")],
    bars: Annotated[int, typer.Option(min=1, help="Tradable bars per path; burn-in comes on top.")] = 1000,
    paths: Annotated[int, typer.Option(min=1, help="Separate paths, one symbol each.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """A market whose best policy is known: does an agent learn it? No performance claim follows from it."""
    from hpcrl.market.stage import stage_planted as run

    _print_staged(run(out, task, bars=bars, paths=paths, seed=seed), as_json)


def _print_staged(result, as_json: bool) -> None:
    from rich.console import Console

    from hpcrl.market.quality import render_report

    if as_json:
        print(json.dumps({"path": str(result.path), "sha256": result.sha256, "report": result.report}))
        return
    Console().print(render_report(result.report))
    print(result.path)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint_epoch_X.pt in one.")],
    split: Annotated[
        str, typer.Option(help="train, validation, or test (sealed: openings are logged).")
    ] = "test",
    data: Annotated[Path | None, typer.Option(help="HDF5 file to play instead of the run's own.")] = None,
    epoch: Annotated[int | None, typer.Option(min=0, help="Checkpoint to take; default: the newest.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to write; default: RUN/evaluation_SPLIT[_epoch_N][_DATA].png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play the deterministic policy over a held-out split, against baselines, after costs."""
    from hpcrl.evaluate.evaluate import evaluate_run, print_evaluation
    from hpcrl.evaluate.plot import plot_path

    path = plot_path(plot, run, split, checkpoint_epoch=epoch, data=data)
    result = evaluate_run(run, split, checkpoint_epoch=epoch, data=data)
    print_evaluation(result, path, as_json)


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


@bench_app.command("train")
def bench_train(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file; default: the defaults.")] = None,
    sets: Sets = None,
    epochs: Annotated[int, typer.Option(min=1, help="Measured epochs, after one warm-up.")] = 3,
    as_json: Json = False,
) -> None:
    """Env steps per second of training, end to end, and where the time goes."""
    from hpcrl.bench.train import bench_train as run
    from hpcrl.bench.train import render

    result = run(config, tuple(sets or ()), epochs)
    if as_json:
        print(json.dumps(result))
    else:
        from rich.console import Console

        Console().print(render(result))


@bench_app.command("env")
def bench_env(
    envs: Annotated[str, typer.Option(help="Numbers of environments, in turn.")] = "1,100,1000,8000",
    sets: Sets = None,
    threads: Annotated[int, typer.Option(help="Threads of the simulator.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds; figures are their medians.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement in a round.")] = 1.0,
    peers: Annotated[
        Path | None,
        typer.Option(help="Python with gym-trading-env; default: .venv-peers (make peers) if it is there."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Steps per second of the simulator alone, all costs on, beside gym-trading-env on the same bars."""
    from hpcrl.bench.env import bench_env as run
    from hpcrl.bench.env import numbers, render

    result = run(
        numbers(envs),
        overrides=tuple(sets or ()),
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        peers=peers,
    )
    if as_json:
        print(json.dumps(result))
    else:
        from rich.console import Console

        Console().print(render(result))


@bench_app.command("against-sb3")
def bench_against_sb3(
    task: Annotated[str, typer.Option(help="A planted market.")] = "L2",
    seconds: Annotated[float, typer.Option(help="Of training, for each of the two.")] = 300.0,
    config: Annotated[Path, typer.Option("--config", help="Settings of both.")] = Path("yaml/learn.yaml"),
    sets: Sets = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    out: Annotated[Path, typer.Option("--out", help="JSON to write; a picture goes beside it.")] = Path(
        "against_sb3.json"
    ),
) -> None:
    """hpcrl and Stable-Baselines3's PPO on one planted market: share of the oracle against time."""
    from hpcrl.bench.against import against_sb3, check, write

    check(out)
    result = against_sb3(
        task, seconds, config_path=config, overrides=tuple(sets or ()), seed=seed, threads=threads
    )
    for path in write(result, out):
        print(path)


@bench_app.command("learn")
def bench_learn(
    task: Annotated[str, typer.Option(help="L3, or L1,L2, or all: planted markets.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of every task.")] = 3,
    config: Annotated[Path, typer.Option("--config", help="The one configuration of all tasks.")] = Path(
        "yaml/learn.yaml"
    ),
    sets: Sets = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")] = 1,
    report: Annotated[Path | None, typer.Option("--report", help="Markdown page to write.")] = None,
    as_json: Json = False,
) -> None:
    """Train on markets whose best policy is known: the share of it that the agent reaches on fresh bars."""
    from hpcrl.bench.learn_report import measure

    met = measure(task, seeds, config, tuple(sets or ()), jobs=jobs, report=report, as_json=as_json)
    sys.exit(0 if met else 1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
