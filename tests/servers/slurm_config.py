"""The files that a small Slurm cluster reads: four nodes of 8 GPUs that are no GPUs, short waits.

Two layouts (``Layout``): in namespaces every node has an address and a name of its own; in the plain one all
daemons share this host, and each listens to a port of its own.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

NODES = 4
NODE_NAMES = tuple(f"node{k}" for k in range(1, NODES + 1))
GPUS, CPUS, MEMORY_MB = 8, 16, 16_000
NETWORK = "10.77.0"
HEAD_ADDRESS = f"{NETWORK}.254"
DATABASE_SOCKET = "mysql.sock"

# cred_expire is also how long Slurm holds a requeued job back; it must exceed KillWait + 5.
# OverMemoryKill: without cgroups Slurm itself looks at the tasks' memory, every two seconds.
SLURM_CONF = """
ClusterName=hpcrl
SlurmctldHost={head_name}({head_address})
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=10
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MailProg=/bin/true
ReturnToService=1
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/%n
SlurmctldDebug=info
SlurmdDebug=verbose
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
KillWait=3
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
BatchStartTimeout=30
MinJobAge=3600
InactiveLimit=0
CompleteWait=0
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
DefMemPerCPU={memory_per_cpu}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={head_address}
AccountingStoragePort={dbd_port}
AccountingStoragePass={root}/munge.socket
AccountingStorageTRES=gres/gpu
GresTypes=gpu
PartitionName=DEFAULT Nodes=ALL DefaultTime=60
PartitionName=gpu Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=hi PriorityTier=100 PreemptMode=OFF
PartitionName=lo PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=lost PriorityTier=1 PreemptMode=CANCEL GraceTime=5
PartitionName=short PriorityTier=10 PreemptMode=OFF MaxTime=1 DefaultTime=1
"""
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost=localhost
DbdAddr={head_address}
DbdPort={dbd_port}
SlurmUser={user}
PidFile={root}/slurmdbd.pid
LogFile={root}/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={database_user}
StorageLoc=slurm_acct
"""
# A test's database may be lost with the machine.
DATABASE_SETTINGS = (
    "--skip-networking",
    "--skip-log-bin",
    "--innodb-flush-method=nosync",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    "--innodb-lock-wait-timeout=900",
    "--performance-schema=OFF",
)


@dataclass(frozen=True)
class Layout:
    """Where the daemons of one cluster listen; ``root`` is short, for unix sockets lie in it."""

    root: Path
    namespaces: bool
    user: str
    head_name: str
    head_address: str
    ctld_port: int
    dbd_port: int
    node_ports: tuple[int, ...]

    @classmethod
    def of(cls, root: Path, namespaces: bool, user: str) -> Layout:
        if namespaces:
            return cls(root, True, user, "head", HEAD_ADDRESS, 6817, 6819, (6818,) * NODES)
        ctld, dbd, *nodes = free_ports(2 + NODES)
        return cls(root, False, user, socket.gethostname(), "127.0.0.1", ctld, dbd, tuple(nodes))

    @property
    def conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    def write(self, **settings: str) -> None:
        """All files; ``settings`` are further lines of slurm.conf, or others' values."""
        for name in ("etc", "log", "state", "spool", "gpus", "bin"):
            (self.root / name).mkdir(exist_ok=True)
        lines = SLURM_CONF.format(**vars(self), memory_per_cpu=MEMORY_MB // CPUS).strip().splitlines()
        lines = [line for line in lines if line.partition("=")[0] not in settings]
        lines += [f"{key}={value}" for key, value in settings.items()]
        lines += [self._node(k) for k in range(1, NODES + 1)]
        self.conf.write_text("\n".join(lines) + "\n")
        # Slurm asks for a device per GPU and takes the GPU's number from its name.
        for k in range(GPUS):
            gpu = self.root / "gpus" / f"nvidia{k}"
            if not gpu.is_symlink():
                gpu.symlink_to("/dev/null")
        gres = f"AutoDetect=off\nName=gpu File={self.root}/gpus/nvidia[0-{GPUS - 1}]\n"
        self.conf.with_name("gres.conf").write_text(gres)
        dbd = self.conf.with_name("slurmdbd.conf")
        dbd.write_text(SLURMDBD_CONF.format(**vars(self), database_user=self.user).lstrip())
        dbd.chmod(0o600)
        hosts = [f"{NETWORK}.{k} {name}" for k, name in enumerate(NODE_NAMES, 1)]
        self.conf.with_name("hosts").write_text(
            "\n".join(["127.0.0.1 localhost", f"{HEAD_ADDRESS} head", *hosts]) + "\n"
        )
        key = self.root / "munge.key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(secrets.token_bytes(128))

    def _node(self, k: int) -> str:
        where = f"NodeAddr={NETWORK}.{k}" if self.namespaces else "NodeHostname=localhost NodeAddr=127.0.0.1"
        return (
            f"NodeName=node{k} {where} Port={self.node_ports[k - 1]} CPUs={CPUS} RealMemory={MEMORY_MB} "
            f"Gres=gpu:{GPUS} State=UNKNOWN"
        )


def free_ports(count: int) -> list[int]:
    """Free just now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def user_name() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
