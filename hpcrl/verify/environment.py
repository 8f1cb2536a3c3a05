"""Python, packages, our own rooms, the loaded module and the clock."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import hpcrl
from hpcrl.verify.finding import Doubt, Trouble

OLDEST = (3, 11)
TRIED = ((3, 11), (3, 12))
SKEW_WARN, SKEW_FAIL = 2.0, 60.0
"""Seconds between this node's clock and that of the shared storage; members compare stamps."""
PEERS = "hpcrl.bench.peer_"
"""Run in an environment of their own (make peers)."""
_PIN = re.compile(r"^([\w.-]+)==([\w.+!-]+)$")


def check_python() -> str:
    version = sys.version_info[:2]
    if version < OLDEST:
        raise Trouble(f"Python {platform.python_version()}", "hpcrl needs Python 3.11 or newer")
    if version not in TRIED:
        raise Doubt(
            f"Python {platform.python_version()} is untried", "3.11 and 3.12 are what the tests run on"
        )
    return f"Python {platform.python_version()} at {sys.executable}"


def check_packages() -> str:
    """What setup.cfg asks for is there in a fitting version; other versions than the pins' are told."""
    from packaging.requirements import Requirement

    asked = [Requirement(text) for text in importlib.metadata.requires("hpcrl") or []]
    missing, wrong = [], []
    for wanted in asked:
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(wanted.name)
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} ({wanted.specifier} is needed)")
    if missing or wrong:
        said = [f"missing: {', '.join(missing)}"] if missing else []
        said += [f"wrong version: {', '.join(wrong)}"] if wrong else []
        raise Trouble("; ".join(said), "pip install -c constraints.txt -e . in this environment")
    if others := _off_the_pins():
        raise Doubt(
            f"other versions than constraints.txt: {', '.join(others[:6])}{' ...' * (len(others) > 6)}",
            "tried are the pins: pip install -c constraints.txt -e .",
        )
    return f"{len(asked)} requirements met"


def _off_the_pins() -> list[str]:
    """Of the constraints.txt beside the package, where there is one (an editable install)."""
    pins = Path(hpcrl.__file__).parents[1] / "constraints.txt"
    if not pins.is_file():
        return []
    others = []
    for line in pins.read_text().splitlines():
        if match := _PIN.match(line.strip()):
            name, pin = match.groups()
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # not everything that is pinned is needed to train
            if version.partition("+")[0] != pin:
                others.append(f"{name} {version} (pin {pin})")
    return others


def check_rooms() -> str:
    """Every module of hpcrl can be imported."""
    count = 0
    for module in pkgutil.walk_packages(hpcrl.__path__, "hpcrl."):
        if module.name.endswith("__main__") or module.name.startswith(PEERS):
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise Trouble(
                f"{module.name} cannot be imported: {reason}", "install what is missing, or reinstall hpcrl"
            ) from None
        count += 1
    return f"{count} modules"


def check_module(environment: dict[str, str]) -> str:
    """The environment module that is loaded is that of this hpcrl."""
    loaded = [name for name in environment.get("LOADEDMODULES", "").split(":") if name.startswith("hpcrl/")]
    if not loaded:
        return "no hpcrl module loaded: this Python's own hpcrl"
    if loaded[-1] != f"hpcrl/{hpcrl.__version__}":
        raise Doubt(
            f"module {loaded[-1]} is loaded, but this is hpcrl {hpcrl.__version__}",
            f"module load hpcrl/{hpcrl.__version__}, or unload it",
        )
    return loaded[-1]


def check_clock(folder: Path) -> str:
    """This node's clock against the one that stamps files in ``folder``: on shared storage the server's."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".verify_clock_") as file:
        before = time.time()
        file.write(b"0")
        file.flush()
        os.fsync(file.fileno())
        after = time.time()
        stamp = os.stat(file.name).st_mtime
    skew = stamp - before if stamp < before else max(0.0, stamp - after)
    said = f"{abs(skew):.1f} s {'behind' if skew > 0 else 'ahead of'} the clock that stamps files in {folder}"
    fix = "start NTP (chronyd) on this node and on the file server"
    if abs(skew) > SKEW_FAIL:
        raise Trouble(said, fix)
    if abs(skew) > SKEW_WARN:
        raise Doubt(said, fix)
    return "agrees with the shared storage's"
