"""The floors of the house: imports go down, or across without circles; the README's tree is the disk's."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "cli": 5, "cli_options": 5, "cli_stage": 5, "cli_bench": 5, "cli_submit": 5, "cli_status": 5,
    "cli_pbt": 5, "cli_rules": 5,
    "cli_report": 5, "cli_export": 5, "cli_watch": 5, "cli_evaluate": 5, "cli_compare": 5, "cli_verify": 5,
    "__main__": 5,
    "train": 4, "launch": 4, "report": 4, "bench": 4, "verify": 4,
    "rollout": 3, "evaluate": 3, "export": 3, "audit": 3,
    "env": 2, "learn": 2, "checkpoint": 2, "pbt": 2,
    "market": 1, "policy": 1, "engine": 1, "monitor": 1,
    "types": 0, "config": 0, "storage": 0, "world": 0, "__init__": 0,
}  # fmt: skip
FILES = sorted((ROOT / "hpcrl").rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "hpcrl").parts
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of every import in the file, inside functions too; those for type checkers alone count."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "hpcrl" and len(parts) > 1 and parts[1] in FLOORS:
                rooms.add(parts[1])
    return rooms - {room_of(path)}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_never_go_up(path):
    own = FLOORS[room_of(path)]
    up = {room for room in imported_rooms(path) if FLOORS[room] > own}
    assert not up, f"{path.relative_to(ROOT)} on floor {own} imports {up}"


def test_rooms_make_no_circle():
    edges: dict[str, set[str]] = {}
    for path in FILES:
        edges.setdefault(room_of(path), set()).update(imported_rooms(path))
    done: set[str] = set()

    def visit(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, f"circle: {' -> '.join([*trail, room])}"
        if room not in done:
            for other in sorted(edges.get(room, ())):
                visit(other, (*trail, room))
            done.add(room)

    for room in edges:
        visit(room, ())


def test_only_the_engine_imports_deepspeed():
    users = {
        room_of(path) for path in FILES if re.search(r"^\s*(import|from) deepspeed", path.read_text(), re.M)
    }
    assert users == {"engine"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 65, f"{node.name} has {length} lines"


def test_configuration_and_help_import_neither_torch_nor_deepspeed():
    code = (
        "import sys, hpcrl.config.load as load, hpcrl.cli; load.load_config(environment={});"
        "slow = {'torch', 'deepspeed', 'pandas', 'h5py', 'supabase', 'psycopg', 'tensorboardX'};"
        "bad = slow & sys.modules.keys(); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_tree_in_the_readme_is_the_one_on_disk():
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"<!-- tree -->\n```\n(.*?)```", readme, re.S)
    named = set()
    folders: list[str] = []
    for line in block.splitlines():
        match = re.match(r"^( *)([\w./-]+)", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        folders = [*folders[:depth], match[2].rstrip("/")]
        named.add("/".join(folders))
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.split("/")[0] for name in tracked} - {".gitignore"}
    rooms = {f"hpcrl/{path.name}" for path in (ROOT / "hpcrl").iterdir() if path.name != "__pycache__"}
    rooms -= {"hpcrl/__init__.py", "hpcrl/__main__.py"}
    assert {name for name in named if "/" not in name} == top
    assert {name for name in named if name.startswith("hpcrl/") and name.count("/") == 1} == rooms
