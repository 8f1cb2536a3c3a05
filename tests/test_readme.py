"""The documents: commands exist as they are written, files and config keys too, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hpcrl.cli import app
from hpcrl.config.load import load_config
from hpcrl.config.load_site import load_site
from hpcrl.config.root import Config, flatten

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
OF_THE_SCRIPTS = {"train": "train", "pbt": "train", "evaluate": "evaluate"}
"""Whose options slurm/NAME.sbatch takes."""
MADE = {"yaml/site/mine.yaml"}
"""By a command of the documents."""


def blocks(document: Path, *languages: str) -> list[str]:
    """Fenced code of these languages, "" for a plain fence; also within lists."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", document.read_text(), re.S | re.M)
    return [text for language, text in found if language in languages]


def commands(document: Path) -> list[list[str]]:
    """Words of each command, of shell blocks and of inline code, without what a shell would take away."""
    lines = [line for text in blocks(document, "") for line in text.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    lines += [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        match = re.match(
            r"\s*(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?((?:hpcrl|sbatch|make|python tools/)(?:\s|\w).*)", line
        )
        if match and " ..." not in match[1] and not re.match(r"hpcrl\.|make\w|hpcrl[_/]", match[1]):
            words = shlex.split(re.split(r"\s(?:#|\||>|&&)\s", match[1] + " ")[0], comments=True)
            found.append(words)
    return found


@cache
def group() -> Any:
    return typer.main.get_command(app)


def parsed(words: list[str]) -> dict[str, Any]:
    """Parameters of an hpcrl command. Raises what the command line would: unknown verb, option or type."""
    command, names = group(), list(words)
    while hasattr(command, "commands"):
        name = names.pop(0)
        assert name in command.commands, f"hpcrl {' '.join(words)}: no verb {name}"
        command = command.commands[name]
    context = command.make_context(" ".join(words), names)
    return dict(context.params)


def options_of(words: list[str]) -> list[str]:
    """hpcrl's words behind ``sbatch [options] slurm/NAME.sbatch``."""
    at = next(number for number, word in enumerate(words) if word.endswith(".sbatch"))
    name, rest = Path(words[at]).name.removesuffix(".sbatch"), words[at + 1 :]
    assert (ROOT / "slurm" / f"{name}.sbatch").is_file()
    if name == "stage":
        verbs = {"supabase", "postgres", "files", "synthetic"}
        rest = rest if rest and rest[0] in verbs else ["supabase", *rest]
        rest += [] if "--out" in rest else ["--out", "market.h5"]
        return ["stage", *rest]
    if "--population" in rest:
        return ["pbt", "run", *rest]
    return [OF_THE_SCRIPTS[name], *rest]


@each_document
def test_commands_are_those_of_the_command_line(document):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands(document):
        if words[0] == "make":
            asked = {word for word in words[1:] if "=" not in word}
            assert asked <= targets, f"{document.name}: {' '.join(words)}"
            continue
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), words[1]
            continue
        if words[0] == "sbatch" and not any(word.endswith(".sbatch") for word in words):
            continue
        own = options_of(words) if words[0] == "sbatch" else words[1:]
        if len(own) < 2 or own[-1] == "--help" or (own[0] in ("stage", "bench", "pbt") and len(own) < 3):
            continue  # a verb that is spoken of
        try:
            params = parsed(own)
        except Exception as error:
            if type(error).__name__ in ("MissingParameter", "BadOptionUsage"):
                continue  # spoken of, as `hpcrl audit --earlier`
            raise AssertionError(f"{document.name}: {' '.join(words)}: {error}") from error
        settings_are_good(document, words, params)


def settings_are_good(document: Path, words: list[str], params: dict[str, Any]) -> None:
    """Its YAML files are there, and its --set fit them."""
    config, sets = params.get("config"), params.get("sets") or ()
    if params.get("site") is not None and str(params["site"]) not in MADE | {"my_site.yaml"}:
        load_site(ROOT / params["site"])
    if config is not None and not str(config).startswith("yaml/"):
        return  # the reader's own
    sets = [text for text in sets if text == text.lower() or "." not in text.partition("=")[2]]
    if config is not None or sets:
        load_config(None if config is None else ROOT / config, sets, environment={})


@each_document
def test_files_that_are_named_exist(document):
    text = document.read_text()
    named = re.findall(r"(?<![\w./-])((?:yaml|slurm|tools|docs|tests|hpcrl|data/sample)/[\w./*-]*\w)", text)
    for name in set(named) - MADE:
        if re.search(r"[A-Z]{3,}", Path(name).name) and not (ROOT / name).exists():
            continue  # NAME: the reader's own
        if name == "hpcrl/Trading-v0" or re.match(r"hpcrl/\d", name):
            continue  # Gymnasium's name of it; a module's
        assert (ROOT / name).exists(), f"{document.name} names {name}"


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    prose = re.sub(r"^ *```.*?^ *```", "", document.read_text(), flags=re.S | re.M)
    heads = re.findall(r"^#+ +(.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each_document
def test_links_lead_somewhere(document):
    prose = re.sub(r"^ *```.*?^ *```", "", document.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{document.name} links to {target}"


@each_document
def test_config_keys_that_are_named_exist(document):
    known = set(flatten(Config().model_dump(mode="json")))
    sections = {key.rpartition(".")[0] for key in known}
    rooms = "|".join(Config.model_fields)
    text = re.sub(r"^ *```python.*?^ *```", "", document.read_text(), flags=re.S | re.M)
    for key in re.findall(rf"(?<![\w./-])((?:{rooms})\.[a-z][\w.]*\w)", text):
        if re.search(r"\.(py|yaml|onnx|h5|json|jsonl|png|sbatch|html)$", key):
            continue
        if (ROOT / "hpcrl" / key.replace(".", "/")).with_suffix(".py").exists():
            continue  # a module
        assert key in known | sections or key.startswith("pbt.space"), f"{document.name} names {key}"


@each_document
def test_yaml_that_is_shown_is_a_config(document, tmp_path):
    for number, text in enumerate(blocks(document, "yaml")):
        if not re.match(rf"({'|'.join(Config.model_fields)}|include):", text):
            continue  # a table file's
        for name in re.findall(r"^include: (\S+)", text, re.M):
            (tmp_path / name).write_text((ROOT / "yaml" / name).read_text())
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        load_config(path, environment={})


@cache
def said() -> str:
    """Every constant text of the code and the scripts."""
    found = []
    for path in (ROOT / "hpcrl").rglob("*.py"):
        found += [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    scripts = [path.read_text() for path in (ROOT / "slurm").iterdir()]
    return "\n".join(found + scripts)


QUOTED_OF_OTHERS = {"hpcrl: command not found"}
"""By a shell."""


@each_document
def test_messages_of_the_troubleshooting_tables_are_what_hpcrl_says(document):
    for table in re.findall(r"^\| you see .*\n(?:\|.*\n)+", document.read_text(), re.M):
        for row in table.splitlines()[2:]:
            for quoted in re.findall(r"`([^`]+)`", row.split("|")[1]):
                if quoted in QUOTED_OF_OTHERS or re.match(r"hpcrl |make |[\w./-]+$", quoted):
                    continue
                # What is filled in: numbers, an epoch, a verb, a file's stem.
                pieces = re.split(r"\.\.\.|\d+(?:\.population)?|\(sbatch.*|^srun| E\b|trained", quoted)
                lost = [piece for piece in pieces if len(piece.strip()) > 3 and piece.strip() not in said()]
                assert not lost, f"{document.name}: nothing says {lost} of {quoted!r}"
