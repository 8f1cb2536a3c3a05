"""``hpcrl bench``: measurements, as ratios and splits of one run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json, Sets, TablesFile, database_request, group, known_secrets

bench_app = group("Measure speed, as ratios and splits of one run.")


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
    seed: Annotated[int, typer.Option(min=0, help="Of both trainings.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
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


@bench_app.command("pbt")
def bench_pbt(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the populations; goes on where it was left.")
    ],
    task: Annotated[str, typer.Option(help="A planted market.")] = "L2",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 3,
    members: Annotated[int, typer.Option(min=2, help="Of each population.")] = 4,
    low: Annotated[float, typer.Option(help="Lowest learning rate.")] = 3e-5,
    high: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-3,
    config: Annotated[Path, typer.Option("--config", help="Settings of all.")] = Path("yaml/learn_pbt.yaml"),
    sets: Sets = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Members at a time.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to write.")] = None,
    as_json: Json = False,
) -> None:
    """A population against the learning rates that it starts from, held fixed, at equal env steps."""
    from hpcrl.bench.population import Spread
    from hpcrl.bench.population import bench_pbt as run
    from hpcrl.bench.population_plot import told, write_spread

    spread = Spread(task, members, low, high)
    result = run(seeds, config, tuple(sets or ()), out, at_once=at_once, spread=spread, told=told)
    if plot is not None:
        write_spread(result, plot)
    ends = result["interval"]
    interval = f" ({ends[0]:+.4f} to {ends[1]:+.4f})" if ends else ""
    words = f"population - best fixed rate: {result['difference']:+.4f}{interval}"
    print(json.dumps(result) if as_json else words)
    sys.exit(0 if result["passed"] else 1)


@bench_app.command("stage")
def bench_stage(
    symbols: Annotated[int, typer.Option(min=1, help="Synthetic symbols of the file.")] = 6,
    rows: Annotated[int, typer.Option(help="Bars of each.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Figures are their medians.")] = 5,
    database: Annotated[
        bool, typer.Option("--database/--no-database", help="Also fetch from the databases that are set.")
    ] = True,
    names: Annotated[str, typer.Option(help="Symbols to fetch: A,B; default: the first --symbols.")] = "",
    timeframe: Annotated[str, typer.Option(help="The database's name of the bars' length.")] = "5Min",
    tables: TablesFile = None,
    timezone: Annotated[str | None, typer.Option(help="Zone of timestamps that carry none.")] = None,
    requests_per_second: Annotated[float, typer.Option(min=0.01, max=1e6, help="Over PostgREST.")] = 20.0,
    as_json: Json = False,
) -> None:
    """Writing and reading the market file, beside plain h5py and a plain read; COPY beside PostgREST.

    What DATABASE_URL and SUPABASE_* (environment or .env) lead to is read, never written.
    """
    from hpcrl.bench.stage import bench_stage as run
    from hpcrl.bench.stage import render
    from hpcrl.config.secrets import POSTGRES, SUPABASE

    if not database:
        result = run(symbols, rows, rounds)
    else:
        request = database_request(tables, names, "", "--names", out=Path(), timeframe=timeframe,
                                   timezone=timezone, requests_per_second=requests_per_second)  # fmt: skip
        with known_secrets(SUPABASE + POSTGRES) as secrets:
            result = run(symbols, rows, rounds, secrets, request)
    if as_json:
        print(json.dumps(result))
    else:
        from rich.console import Console

        Console().print(render(result))
