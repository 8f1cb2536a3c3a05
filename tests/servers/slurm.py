"""A real Slurm cluster for the tests: munge, accounting (MariaDB, slurmdbd), a controller, four nodes.

As root every node is a machine of its own (``slurm_namespaces``), which can lose its power or its network;
otherwise all daemons share this host. Each cluster has its own folder under /tmp and ends with the test
process, however that comes to its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from servers.slurm_config import DATABASE_SETTINGS, DATABASE_SOCKET, NODE_NAMES, NODES, Layout, user_name
from servers.slurm_namespaces import Namespaces

PATH = ":".join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
)
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "ip": "iproute2",
}
ENDED = frozenset(
    ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"]
)
# Variables of an enclosing job or launcher, which would mislead what a test starts.
_FOREIGN = ("SLURM_", "SLURMD_", "SBATCH_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "GPU_COUNT",
            "ENVS_PER_GPU", "TRAINING_MODE")  # fmt: skip
# Ends what is left of the cluster (jobs of the plain layout outlive their daemons), then removes the folder.
# A process belongs to the cluster if its environment names the folder.
_BROOM = """
cat
left() { grep -lsF "$0/" /proc/[0-9]*/environ | cut -d/ -f3; }
for i in $(seq 100); do
    pids=$(left); [ -n "$pids" ] || break
    kill -KILL $pids 2>/dev/null; sleep 0.1
done
until rm -rf "$0"; do sleep 0.1; done 2>/dev/null
"""


def missing_packages() -> list[str]:
    """Debian's names of those packages whose programs are not on this machine."""
    return sorted({package for name, package in PACKAGES.items() if shutil.which(name, path=PATH) is None})


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def poll(probe: Callable[[], Any], seconds: float, otherwise: Callable[[], str]) -> Any:
    """The first true value of ``probe()``; fails with ``otherwise()`` after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds:g} s: {otherwise()}")
        time.sleep(0.1)


class SlurmCluster:
    """``start`` and ``stop``; use the fixture ``slurm``."""

    def __init__(self, namespaces: bool | None = None) -> None:
        """``namespaces``: None takes them where it may (root)."""
        self.namespaces = os.geteuid() == 0 if namespaces is None else namespaces
        self._daemons: dict[str, subprocess.Popen] = {}
        self._cut: set[int] = set()
        self._inside: Namespaces | None = None
        self._configured = False

    # Life of the cluster

    def start(self) -> None:
        # Not TMPDIR: a socket's path has at most 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="hpcrl-slurm-", dir="/tmp"))
        self.root.chmod(0o755)
        self._broom = subprocess.Popen(
            ["sh", "-c", _BROOM, str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.layout = Layout.of(self.root, self.namespaces, user_name())
        self.layout.write()
        if self.namespaces:
            self._inside = Namespaces(self.layout, self._own_environment(), _die_with_parent)
        self._start_munge()
        self._start_accounting()
        self.start_controller()
        for k in range(1, NODES + 1):
            self.start_node(k)
        self.wait_nodes()

    def stop(self) -> None:
        for daemon in self._daemons.values():
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait(30)
        if self._inside is not None:
            self._inside.close()
        if hasattr(self, "_broom"):
            self._broom.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._broom.wait(60)  # it goes on by itself

    def reset(self) -> None:
        """For the next test: no job is left, every node is up and idle, the settings are the first ones."""
        if self._daemons["slurmctld"].poll() is not None:
            self.start_controller()
        if self._configured:
            self.configure()
        for k in sorted(self._cut):
            self.mend(k)
        for k in range(1, NODES + 1):
            if self._daemons[f"node{k}"].poll() is not None:
                self.start_node(k)
        self.poll(self._empty, 120)

    def _empty(self) -> bool:
        """Again and again: a cancelled job may requeue itself, a node may be drained meanwhile."""
        states = self.node_states()
        for name in [name for name, state in states.items() if state.startswith(("down", "drain"))]:
            self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        jobs = self.run("squeue", "--noheader", "--format=%F %T").stdout.splitlines()
        waiting = [line.split()[0] for line in jobs if not line.endswith("COMPLETING")]
        if waiting:
            self.run("scancel", *waiting, check=False)
        return not jobs and set(states.values()) == {"idle"}

    def _own_environment(self) -> dict[str, str]:
        own = {
            "PATH": PATH,
            "LC_ALL": "C",
            "SLURM_CONF": str(self.layout.conf),
            "HOME": os.environ.get("HOME", "/"),
        }
        return own | {"MYSQL_UNIX_PORT": str(self.root / DATABASE_SOCKET)}

    def _launch(self, name: str, command: Iterable[str]) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                list(command),
                cwd=self.root,
                env=self._own_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
                preexec_fn=_die_with_parent,
            )

    def _on_head(self, *command: str) -> list[str]:
        return [*(self._inside.inside() if self._inside else ()), *command]

    def _ready(self, name: str, probe: Callable[[], Any]) -> None:
        """Wait for a daemon that must not end."""
        deadline = time.monotonic() + 60
        while not probe():
            if self._daemons[name].poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{name} does not start:\n{self.log(name)}", pytrace=False)
            time.sleep(0.02)

    def _start_munge(self) -> None:
        socket = self.root / "munge.socket"
        files = {"socket": socket, "key-file": self.root / "munge.key", "pid-file": self.root / "munged.pid"}
        files |= {"log-file": self.root / "log" / "munged", "seed-file": self.root / "munge.seed"}
        options = [f"--{key}={path}" for key, path in files.items()]
        # --force: it distrusts /tmp, which all may write to.
        self._launch("munged", self._on_head("munged", "--foreground", "--force", *options))
        self._ready("munged", socket.exists)

    def _start_accounting(self) -> None:
        data, user = self.root / "mysql", self.layout.user
        # A server removes all temporary tables that it finds as it starts, another server's, too.
        scratch = self.root / "tmp"
        scratch.mkdir()
        options = ["--no-defaults", f"--datadir={data}", f"--tmpdir={scratch}", f"--user={user}"]
        options += DATABASE_SETTINGS
        made = subprocess.run(
            ["mariadb-install-db", *options, "--auth-root-authentication-method=normal", "--skip-test-db"],
            env=self._own_environment(),
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.fail(f"mariadb-install-db: {made.stdout}{made.stderr}", pytrace=False)
        socket = self.root / DATABASE_SOCKET
        self._launch("mariadbd", ["mariadbd", *options, f"--socket={socket}", "--skip-grant-tables"])
        self._ready("mariadbd", socket.exists)
        self._launch("slurmdbd", self._on_head("slurmdbd", "-D"))
        self._ready(
            "slurmdbd", lambda: self.run("sacctmgr", "-n", "show", "cluster", check=False).returncode == 0
        )

    # Commands

    def poll(self, probe: Callable[[], Any], seconds: float) -> Any:
        """The first true value of ``probe()``; fails with ``report()`` after so many seconds."""
        return poll(probe, seconds, self.report)

    def environment(self, **extra: str) -> dict[str, str]:
        """For processes that call Slurm's commands: PATH and SLURM_CONF, and no other job's variables."""
        base = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        base |= {
            "PATH": f"{self.root}/bin:{PATH}",
            "SLURM_CONF": str(self.layout.conf),
            "OMP_NUM_THREADS": "1",
        }
        return base | extra

    def run(
        self, *command: object, cwd: Path | None = None, check: bool = True, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's (or another) in ``environment(**extra)``; ``check``: it must succeed."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.root,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, (
            f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def on_head(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Inside the head: what it mounts, nodes see that are started afterwards."""
        self._need_namespaces()
        words = self._on_head(*map(str, command))
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sbatch(
        self, script: Path | str, *arguments: object, options: Iterable[str] = (), cwd: Path, **extra: str
    ) -> str:
        """The new job's id. ``script``: a file, or the text of one (it begins with #!)."""
        if isinstance(script, str) and script.startswith("#!"):
            path = Path(tempfile.mkstemp(suffix=".sbatch", dir=self.root)[1])
            path.write_text(script)
            script = path
        done = self.run("sbatch", "--parsable", *options, script, *arguments, cwd=cwd, **extra)
        return done.stdout.strip().partition(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """What scontrol tells of a job (or of one task of an array, 12_3): {"JobState": "RUNNING", ...}."""
        shown = self.run("scontrol", "-o", "show", "job", job, check=False).stdout
        # Values may hold spaces and equals signs: a folder's name, TRES=cpu=8,mem=4G.
        parts = re.split(r"(?:^| )([A-Z][\w:/]*)=", shown.partition("\n")[0])
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    def state(self, job: str) -> str:
        return self.show(job).get("JobState", "unknown")

    def wait(self, job: str, states: str | Collection[str] = ENDED, timeout: float = 120) -> dict[str, str]:
        """``show(job)`` once the job is in one of the states."""
        wanted = {states} if isinstance(states, str) else set(states)

        def probe() -> dict[str, str] | None:
            shown = self.show(job)
            return shown if shown.get("JobState") in wanted else None

        return poll(
            probe, timeout, lambda: f"job {job} is not {' or '.join(sorted(wanted))}: {self.show(job)}"
        )

    def wait_start(self, job: str, restarts: int, timeout: float = 120) -> dict[str, str]:
        """``show(job)`` once the job runs for the ``restarts + 1``-th time."""

        def probe() -> dict[str, str] | None:
            shown = self.show(job)
            again = int(shown.get("Restarts", "-1")) >= restarts
            return shown if again and shown["JobState"] == "RUNNING" else None

        return poll(probe, timeout, lambda: f"job {job} did not start {restarts + 1} times: {self.show(job)}")

    def sacct(self, job: str, *, steps: bool = False, duplicates: bool = True) -> list[dict[str, str]]:
        """Accounting's lines of a job: one per start (``duplicates``), and one per step if asked for."""
        fields = "JobID,JobName,State,ExitCode,DerivedExitCode,Start,End,NodeList,Elapsed,MaxRSS"
        options = ["-P", "-n", "-j", job, f"--format={fields}"]
        options += ["--duplicates"] * duplicates + ["--allocations"] * (not steps)
        lines = self.run("sacct", *options).stdout.splitlines()
        return [dict(zip(fields.split(","), line.split("|"), strict=True)) for line in lines]

    def cancel(self, job: str, *options: str) -> None:
        self.run("scancel", *options, job)

    def configure(self, **settings: str) -> None:
        """slurm.conf with these settings in place of, or beside, the first ones; read at once."""
        self._configured = bool(settings)
        self.layout.write(**settings)
        self.run("scontrol", "reconfigure")

    # Faults

    def start_controller(self) -> None:
        self._launch("slurmctld", self._on_head("slurmctld", "-D", "-f", str(self.layout.conf)))
        self._ready("slurmctld", lambda: "UP" in self.run("scontrol", "ping", check=False).stdout)

    def stop_controller(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._daemons["slurmctld"].send_signal(how)
        self._daemons["slurmctld"].wait(60)

    def start_node(self, k: int) -> None:
        name, conf = f"node{k}", str(self.layout.conf)
        command = self._inside.node(k) if self._inside else ["slurmd", "-D", "-N", name, "-f", conf]
        self._launch(name, command)

    def restart_node(self, k: int) -> None:
        """Power back on; the controller learns of it in a moment."""
        self.kill_node(k)
        self.start_node(k)

    def kill_node(self, k: int) -> None:
        """A power failure: every process there is gone at once, nobody is told."""
        self._need_namespaces()
        self._daemons[f"node{k}"].kill()
        self._daemons[f"node{k}"].wait(30)

    def cut(self, k: int) -> None:
        """No network from and to node k, which runs on and still sees the disk."""
        self._need_namespaces().link(k, "down")
        self._cut.add(k)

    def mend(self, k: int) -> None:
        self._cut.discard(k)
        if self._daemons[f"node{k}"].poll() is None:
            self._need_namespaces().link(k, "up")

    def _need_namespaces(self) -> Namespaces:
        if self._inside is None:
            pytest.skip("nodes that can fail need namespaces, and those need root")
        return self._inside

    def node_states(self) -> dict[str, str]:
        """{"node1": "idle", ...}; a star behind: it does not answer."""
        shown = self.run("sinfo", "--noheader", "-N", "--partition=gpu", "--format=%N %T").stdout.split()
        return dict(zip(shown[::2], shown[1::2], strict=True))

    def wait_nodes(self, *states: str, nodes: Collection[str] = NODE_NAMES, timeout: float = 90) -> None:
        """Until each of the nodes is in one of the states (idle unless told)."""
        wanted = set(states or ("idle",))

        def probe() -> bool:
            found = self.node_states()
            return {found.get(name) for name in nodes} <= wanted

        self.poll(probe, timeout)

    def log(self, name: str) -> str:
        """What a daemon (slurmctld, slurmdbd, munged, mariadbd, node1...) wrote."""
        path = self.root / "log" / name
        return (path if path.exists() else path.with_name(f"{name}.out")).read_text(errors="replace")

    def report(self) -> str:
        """For a failure's message: nodes, queue, the controller's last words."""
        queue = self.run("squeue", "--noheader", check=False).stdout
        return f"{self.node_states()}\n{queue}\n" + "\n".join(self.log("slurmctld").splitlines()[-20:])
