"""The manifest: the commit mark of a checkpoint, written last, with the sha256 of every file it names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcrl.storage.atomic import read_json, sha256_of
from hpcrl.types import HpcrlError, RunFailed

FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    epoch: int
    """Finished epochs."""
    world_size: int
    """Ranks whose states are in it."""
    kept: bool
    """Kept for good; otherwise rolling."""
    files: dict[str, FileRecord]
    created: str
    """UTC, ISO 8601."""

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, value: dict[str, Any], name: str) -> Manifest:
        """RunFailed naming ``name`` and the first thing that is wrong."""
        if value.get("format") != FORMAT:
            raise RunFailed(f"{name}: format {value.get('format')!r} is not known (expected {FORMAT})")
        try:
            files = {
                str(file): FileRecord(str(record["sha256"]), int(record["bytes"]))
                for file, record in value["files"].items()
            }
            found = cls(
                int(value["epoch"]),
                int(value["world_size"]),
                bool(value["kept"]),
                files,
                str(value["created"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunFailed(f"{name}: not a checkpoint manifest ({type(error).__name__}: {error})") from error
        if found.world_size < 1 or len(files) != found.world_size + 1:
            raise RunFailed(f"{name}: names {len(files)} files for {found.world_size} ranks")
        return found

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """RunFailed if it is missing, torn, foreign, or names files outside its own checkpoint."""
        try:
            found = cls.from_dict(read_json(path), path.name)
        except RunFailed:
            raise
        except HpcrlError as error:
            raise RunFailed(str(error)) from error
        stem = path.name.removesuffix(".json")
        expected = {f"{stem}.pt", *(f"{stem}.rank_{rank}.pt" for rank in range(found.world_size))}
        if found.files.keys() != expected or stem != f"checkpoint_epoch_{found.epoch}":
            raise RunFailed(f"{path.name}: does not name the files of its own checkpoint")
        return found

    def check_file(self, folder: Path, name: str) -> None:
        """RunFailed naming the file, if it is missing, truncated or altered."""
        path, record = folder / name, self.files[name]
        try:
            size = path.stat().st_size
            if size != record.bytes:
                raise RunFailed(
                    f"{path}: truncated or altered ({size:,} bytes, its manifest says {record.bytes:,})"
                )
            if sha256_of(path) != record.sha256:
                raise RunFailed(f"{path}: altered (its sha256 is not the manifest's)")
        except FileNotFoundError as error:
            raise RunFailed(f"{path}: missing, though its manifest names it") from error
        except OSError as error:
            raise RunFailed(f"{path}: cannot be read: {error.strerror or error}") from error

    def check_files(self, folder: Path) -> None:
        for name in sorted(self.files):
            self.check_file(folder, name)
