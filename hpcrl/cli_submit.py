"""``hpcrl submit``: jobs of a cluster from a config and a site's YAML file.

hpcrl submit --config yaml/train_8gpu.yaml --site yaml/site/mine.yaml
hpcrl submit --config yaml/train_8gpu.yaml --chain stage,train,evaluate --stage "supabase --symbols AAPL,MSFT"
hpcrl submit --resume checkpoints/dist_run_20260102_030405 --set train.epochs=200
hpcrl submit --pbt --config yaml/pbt.yaml --members 8 --gpus-per-member 1 --throttle 4
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcrl.cli_options import Json, Sets, UsageError, names, usage_words
from hpcrl.cli_stage import stage_app
from hpcrl.types import HpcrlError

if TYPE_CHECKING:  # pydantic and submitit: not for --help
    from hpcrl.launch.plan import Plan

_STAGE_VERBS = ("supabase", "postgres", "files", "synthetic", "planted")
_SPLITS = ("train", "validation", "test")

TakeOver = Annotated[
    bool,
    typer.Option("--take-over", help="With --resume: although a process, say on a lost node, holds it."),
]
Pbt = Annotated[
    bool,
    typer.Option("--pbt", help="A population: a job array, a member each task. Default: yaml/pbt.yaml."),
]
Members = Annotated[int | None, typer.Option(help="Of a population: pbt.members.")]
GpusPerMember = Annotated[int | None, typer.Option(help="Ranks of each: train.world_size. Default: 1.")]
Throttle = Annotated[int, typer.Option(help="Members that train at the same time.")]
Going = Annotated[
    Path | None,
    typer.Option("--population", metavar="POPULATION", help="With --pbt: go on with this one."),
]


def submit(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file, see yaml/.")] = None,
    sets: Sets = None,
    site: Annotated[
        Path | None, typer.Option("--site", help="YAML file, see yaml/site/; default: HPCRL_SITE's.")
    ] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Ranks in all: train.world_size.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes to spread them over.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="A job that goes on with a run, exactly.")
    ] = None,
    take_over: TakeOver = False,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="CHECKPOINT", help="New run from a run's or checkpoint's weights."),
    ] = None,
    chain: Annotated[str, typer.Option(help="Jobs, one after the other: stage,train,evaluate.")] = "train",
    stage: Annotated[str, typer.Option(metavar="WORDS", help="Of hpcrl stage, no --out.")] = "supabase",
    evaluate: Annotated[str, typer.Option(metavar="WORDS", help="Of hpcrl evaluate, without the run.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the scripts, have Slurm check them, make nothing.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Run the jobs on this machine, and wait.")] = False,
    wait: Annotated[
        bool | None, typer.Option("--wait/--no-wait", help="Until the jobs are over; default: for a chain.")
    ] = None,
    pbt: Pbt = False,
    members: Members = None,
    gpus_per_member: GpusPerMember = None,
    throttle: Throttle = 4,
    population: Going = None,
    as_json: Json = False,
) -> None:
    """Submit training to Slurm, or a chain of staging, training and evaluation; prints the run folder.

    With --pbt a population, whose folder it prints. A site's partition, modules, limits and policies:
    yaml/site/default.yaml.
    """
    _refuse_mixed(context, pbt)
    if pbt:
        _submit_population(context.params)
        return
    from hpcrl.launch.plan import SubmitRequest, make_plan

    kinds = names(chain, "--chain")
    root: Any = context.find_root().command
    request = SubmitRequest(
        config=config, overrides=tuple(sets or ()), site=site, ranks=ranks, nodes=nodes,
        resume=resume, take_over=take_over, init=init, chain=kinds,
        stage=_stage_words(stage) if "stage" in kinds else (),
        evaluate=_evaluate_words(evaluate, root.commands["evaluate"]) if "evaluate" in kinds else (),
        local=local, words=tuple(sys.argv[1:]),
    )  # fmt: skip
    plan = make_plan(request)
    if dry_run:
        _show(plan)
    elif local:
        from hpcrl.launch.local_job import run_local

        run, code = run_local(plan)
        print(run)
        sys.exit(code)
    else:
        _submit(plan, len(plan.chain) > 1 if wait is None else wait, as_json)


_OF_RUN = {
    "resume": ": --population goes on with a population",
    "init": "",
    "take_over": "",
    "ranks": ": --gpus-per-member says how many ranks each member has",
    "nodes": ": a member is on one node",
    "chain": ": stage before, and evaluate the best member's run folder afterwards",
    "stage": "",
    "evaluate": "",
    "local": ": hpcrl pbt run --local runs a population on this machine",
    "wait": ": hpcrl pbt status looks",
}
"""Options that do not go with --pbt, and what does."""
_OF_POPULATION = ("members", "gpus_per_member", "throttle", "population")


def _refuse_mixed(context: typer.Context, pbt: bool) -> None:
    """HpcrlError: an option of a single run with --pbt, of a population without, or of no job here."""

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    for name in filter(given, _OF_RUN if pbt else _OF_POPULATION):
        option = f"--{name.replace('_', '-')}"
        if pbt:
            raise HpcrlError(f"{option} is for a single run, it does not go with --pbt{_OF_RUN[name]}")
        raise HpcrlError(f"{option} is for populations: add --pbt")
    kinds = names(context.params["chain"], "--chain")
    for kind in filter(given, ("stage", "evaluate")):
        if kind not in kinds:
            raise HpcrlError(f"--{kind} is for a job of that kind, and --chain {','.join(kinds)} has none")


def _submit_population(options: dict[str, Any]) -> None:
    from hpcrl.launch.array import ArrayRequest, array_script, name_of_next, plan_array, submit_array
    from hpcrl.launch.submit import lint

    same = ("config", "site", "population", "members", "gpus_per_member", "throttle")
    request = ArrayRequest(
        overrides=tuple(options["sets"] or ()),
        words=tuple(sys.argv[1:]),
        **{name: options[name] for name in same},
    )
    plan = plan_array(request)
    if options["dry_run"]:
        script = array_script(plan, name_of_next(plan))
        print(script, flush=True)
        print(f"population: {lint(script, 'population')}", file=sys.stderr, flush=True)
        return
    made, array = submit_array(plan)
    if options["as_json"]:
        shown = {"population": str(made.path), "job": array, "members": plan.members}
        print(json.dumps(shown), flush=True)
    else:
        print(made.path, flush=True)
    count = len(plan.members)
    number = f"{count} member{'s' * (count > 1)}"
    print(
        f"submitted {number} as array {array}, {min(plan.throttle, count)} at a time",
        f"to look: hpcrl pbt status {shlex.quote(str(made.path))}",
        sep="\n", file=sys.stderr, flush=True,
    )  # fmt: skip


def _submit(plan: Plan, wait: bool, as_json: bool) -> None:
    from hpcrl.launch.follow import follow
    from hpcrl.launch.plan import read_submission
    from hpcrl.launch.submit import submit as run_submit

    run = run_submit(plan)
    jobs = read_submission(run)["jobs"][-len(plan.chain) :]
    if as_json:
        print(json.dumps({"run": str(run), "jobs": jobs}), flush=True)
    else:
        print(run, flush=True)
    for job in jobs:
        after = f", after {job['after']}" if job["after"] else ""
        print(f"submitted {job['kind']} as job {job['id']}{after}", file=sys.stderr, flush=True)
    if wait:
        sys.exit(follow(run, [job["id"] for job in jobs], show_table=not as_json))
    print(f"to look: hpcrl status {shlex.quote(str(run))}", file=sys.stderr)


def _show(plan: Plan) -> None:
    """The scripts on stdout, what Slurm says of them on stderr."""
    from hpcrl.launch.submit import job_script, lint, name_of_next

    run = name_of_next(plan)
    for index, kind in enumerate(plan.chain):
        after = f"JOB_OF_{plan.chain[index - 1].upper()}" if index else None
        script = job_script(plan, kind, run, after)
        if index:
            print(f"\n# ---- {kind}, after {plan.chain[index - 1]} ----")
        print(script, flush=True)
        print(f"{kind}: {lint(script, kind)}", file=sys.stderr, flush=True)


def _split(text: str, option: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise HpcrlError(f"{option} {text!r}: {str(error).lower()}") from None


def _stage_words(text: str) -> tuple[str, ...]:
    """``supabase --symbols A`` as words that hpcrl stage understands. HpcrlError: it would not."""
    from hpcrl.config.dsn import check_dsn

    words = _split(text, "--stage")
    if not words or words[0].startswith("-"):
        words = ["supabase", *words]
    if words[0] not in _STAGE_VERBS:
        raise HpcrlError(f"--stage {words[0]}: expected one of {', '.join(_STAGE_VERBS)}, and its options")
    if any(word == "--out" or word.startswith("--out=") for word in words):
        raise HpcrlError("--stage: leave --out out; the data goes to the config's market.path")
    stage: Any = typer.main.get_command(stage_app)
    found = _parsed(stage.commands[words[0]], [*words[1:], "--out", "market.h5"], "--stage")
    if found.get("dsn") is not None:
        check_dsn(found["dsn"])
    return tuple(words)


def _evaluate_words(text: str, command: Any) -> tuple[str, ...]:
    words = _split(text, "--evaluate")
    found = _parsed(command, ["RUN", *words], "--evaluate")
    if found["split"] not in _SPLITS:
        raise HpcrlError(f"--evaluate --split {found['split']}: expected one of {', '.join(_SPLITS)}")
    return tuple(words)


def _parsed(command: Any, words: list[str], option: str) -> dict[str, Any]:
    """The command's parameters; HpcrlError for words that it would refuse."""
    if "--help" in words:
        raise HpcrlError(f"{option}: --help is for the command itself")
    try:
        return command.make_context(command.name, words).params
    except UsageError as error:
        raise HpcrlError(f"{option}: {usage_words(error)}") from None
