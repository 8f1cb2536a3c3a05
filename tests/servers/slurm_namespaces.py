"""Every node of a test cluster as a machine of its own: names, addresses, a network that can be cut.

The head (controller, databases, munge) has a network and a host name, too, so that two clusters on one
machine share nothing. All of it goes with the processes in it. Needs root.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from servers.slurm_config import HEAD_ADDRESS, NETWORK, Layout

# The holder of the head's namespaces: it lives until the pipe from the test process closes.
HEAD = f"""
set -e
hostname head
ip link set lo up
ip link add br0 type bridge
ip addr add {HEAD_ADDRESS}/24 dev br0
ip link set br0 up
mount --bind "$1/etc/hosts" /etc/hosts
mkdir -p /etc/slurm
mount --bind "$1/etc" /etc/slurm
mount -t tmpfs none "$1/bin"
echo ready
exec cat
"""
# Runs with the head's network; descriptor 3 keeps it in reach of the node, which puts its cable there.
# As the first process of the node it collects orphans; when it ends, the kernel ends all others there.
NODE = f"""
set -e
ip link del "vb$2" 2>/dev/null || true
exec 3</proc/self/ns/net
exec unshare --net --uts --mount --pid --fork --kill-child --mount-proc sh -ec '
hostname "node$1"
ip link set lo up
ip link add eth0 type veth peer name "vb$1" netns /proc/self/fd/3
nsenter --net=/proc/self/fd/3 ip link set "vb$1" master br0 up
ip addr add "{NETWORK}.$1/24" dev eth0
ip link set eth0 up
exec 3<&-
slurmd -D -f "$0" & wait $!
' "$1/etc/slurm.conf" "$2"
"""
# Slurm's commands for the tests: in the head's network. In the cluster itself an empty folder lies over them.
WRAPPER = """#!/bin/sh
exec nsenter --target {pid} --net --uts {program} "$@"
"""
COMMANDS = (
    "sbatch", "srun", "salloc", "scontrol", "squeue", "sacct", "sacctmgr", "scancel", "sinfo", "sstat",
)  # fmt: skip


class Namespaces:
    """The head's namespaces, and prefixes of commands that run in them."""

    def __init__(self, layout: Layout, environment: dict[str, str], die_with_parent) -> None:
        self.layout = layout
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-ec", HEAD, "sh", str(layout.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
            preexec_fn=die_with_parent,
        )
        if self._holder.stdout.readline() != "ready\n":
            raise OSError(f"no namespaces here: {self._holder.communicate()[1].strip()}")
        for name in COMMANDS:
            program = Path("/usr/bin") / name
            wrapper = layout.root / "bin" / name
            wrapper.write_text(WRAPPER.format(pid=self._holder.pid, program=program))
            wrapper.chmod(0o755)

    def inside(self) -> list[str]:
        """A prefix: the command runs on the head."""
        target = f"--target={self._holder.pid}"
        return ["nsenter", target, "--net", "--uts", "--mount", f"--wdns={self.layout.root}"]

    def node(self, k: int) -> list[str]:
        """The command whose SIGKILL is node k's power failure."""
        return [*self.inside(), "sh", "-c", NODE, "sh", str(self.layout.root), str(k)]

    def link(self, k: int, state: str) -> None:
        """``down`` cuts node k's cable, ``up`` mends it."""
        subprocess.run(
            [*self.inside(), "ip", "link", "set", f"vb{k}", state],
            check=True,
            capture_output=True,
            timeout=30,
        )

    def close(self) -> None:
        self._holder.communicate()
