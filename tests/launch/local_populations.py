"""Stand-ins for members, which publish without training, and small populations that train.

A stand-in is a package ``hpcrl`` in the working folder: its __main__ is the one below for ``train``, its
other modules are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import runs
from made_populations import WINDOWS, made_config

import hpcrl
from hpcrl.launch.population import Places
from hpcrl.launch.population_run import Runner
from hpcrl.pbt.population import Population

REAL = Path(hpcrl.__file__).parent
TESTS = Path(__file__).parents[1]

# What a member does at its starts stands in plan/MEMBER, a word each: "done" (all turns), "turns:2" (then it
# gives its place), "killed", "hung", "mistake", "wait" (for a signal).
MEMBER = """
import json, os, signal, sys, time
from pathlib import Path
if sys.argv[1] != "train":
    from hpcrl.cli import main
    main()
    sys.exit()
sys.path.insert(0, {tests!r})
run = Path(sys.argv[sys.argv.index("--run") + 1])
here = run.parents[2] / "plan"
number = int(run.name)
words = (here / str(number)).read_text().split()
word = words.pop(0)
(here / str(number)).write_text(" ".join(words))
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "GPU_COUNT", "SLURM_JOB_ID", "DATABASE_URL")
with (here / "started").open("a") as file:
    found = {{name: os.environ.get(name) for name in names}} | {{"member": number, "argv": sys.argv[1:]}}
    file.write(json.dumps(found) + "\\n")
if word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "mistake":
    print("error: market.path = gone.h5: no such file", file=sys.stderr)
    sys.exit(2)
if word == "hung":
    os._exit(70)
if word == "wait":
    from hpcrl.world.stop import StopFlag
    flag = StopFlag().install()
    (here / f"waits_{{number}}").write_text(str(os.getpid()))
    while flag.signal is None:
        time.sleep(0.02)
    (here / f"saved_{{number}}").write_text(flag.signal.name)
    sys.exit(75)
from made_populations import WINDOWS, begin, end, publish
from hpcrl.pbt.population import Population
population = Population.open(run.parents[1])
(here / f"runs_{{number}}").touch()
taker = begin(population, number)
most = int(word.partition(":")[2] or population.generations)
for _ in range(min(most, population.generations - taker.state.generation)):
    publish(taker, [number + 0.1 * taker.state.generation] * WINDOWS)
    print(f"PBT: member {{number}} (generation {{taker.state.generation}}): said", flush=True)
(here / "at_once").open("a").write(f"{{len(list(here.glob('runs_*')))}}\\n")
(here / f"runs_{{number}}").unlink()
code = 0 if taker.state.generation == population.generations else 75
end(population, number, code, "finished" if code == 0 else "SIGUSR2")
sys.exit(code)
"""


def make(place: Path, *plans: str, sets: tuple[str, ...] = ()) -> Population:
    """A population of four generations with a member per plan."""
    sets = (f"pbt.members={len(plans)}", "train.epochs=20", *sets)
    for number, plan in enumerate(plans):
        (place / "plan" / str(number)).write_text(plan)
    return Population.create(made_config(place, *sets), "0" * 64, WINDOWS)


def run(population: Population, places: Places, live: tuple[str, ...] = ()) -> int:
    return Runner(population, places, live, "the command that goes on").run()


def started(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "plan/started").read_text().splitlines()]


def wait_for(*paths: Path) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < end, f"{paths} did not appear"
        time.sleep(0.02)


def start(population: Population, *words: str) -> subprocess.Popen[str]:
    """The command itself, on the stand-ins."""
    command = [*runs.command("pbt", "run", "--local", "--population", str(population.path)), *words]
    return subprocess.Popen(
        command,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def made_on(market: Path, place: Path, *plans: str) -> Population:
    """As ``make``, with data that are there."""
    from hpcrl.market.store import read_header

    sets = (f"pbt.members={len(plans)}", "train.epochs=20", f"market.path={market}")
    for number, plan in enumerate(plans):
        (place / "plan" / str(number)).write_text(plan)
    return Population.create(made_config(place, *sets), read_header(market)["sha256"], WINDOWS)


SMALL = {
    "train": {"epochs": 6, "seed": 3},
    "market": {"path": "market.h5", "train_fraction": 0.5, "validation_fraction": 0.4},
    "env": {"envs_per_gpu": 4, "episode_rollouts": 2, "lot": 0},
    "policy": {"d_model": 16, "layers": 2, "heads": 2, "window": 8},
    "learn": {"rollout": 32, "sequence_length": 16, "batch_size": 64, "ppo_epochs": 2, "lr": 1e-3},
    "engine": {"precision": "fp32", "device": "cpu"},
    "checkpoint": {"every_minutes": 0},
    "pbt": {"members": 4, "interval": 2, "level": 0.5, "objective": {"window_bars": 20}},
}
