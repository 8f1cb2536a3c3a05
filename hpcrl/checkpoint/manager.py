"""Saving, finding, loading and pruning the checkpoints of one run. Every call is collective.

How a save stays safe. (1) Rank 0 clears what dead writers left. (2) All ranks write and sync their files
under temporary names, rank 0 the manifest too, so that a full disk shows before anything visible has changed.
(3) The ranks tell each other; one failure makes all of them remove their files and raise the same RunFailed.
(4) All rename; rank 0 renames the manifest last. (5) Rank 0 prunes, manifests before files. A kill at any
moment leaves either no manifest (leftovers, cleared by the next save) or a whole checkpoint.

Saving an epoch that is there already: if this run loaded or saved it, it is the same state and only its
``kept`` flag may change. Otherwise it is of a future that the run went back on. Its manifest is removed
first, so that old manifest and new files never stand side by side, but only while another good checkpoint
exists; the only good one is never touched (the run can have come from nowhere else: it is the same state).
Later epochs, of the same abandoned future, are removed after the commit: ``newest`` would prefer them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpcrl.checkpoint.contents import load_plain, plain
from hpcrl.checkpoint.manifest import FileRecord, Manifest
from hpcrl.storage.atomic import Staged, fsync_folder, stage, to_json, write_json
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.agree import all_or_none
from hpcrl.world.collectives import broadcast_object, gather_objects
from hpcrl.world.memory import ran_out
from hpcrl.world.world import World

log = logging.getLogger(__name__)


class CheckpointManager:
    """``keep_rolling``: how many of the checkpoints that are not kept for good survive, newest first.

    ``run`` is the folder of one attempt (``storage/attempts``). On rank 0, before a save ``check`` is asked
    (it raises where a newer attempt trains this run), and after it ``publish`` is called.
    """

    def __init__(
        self,
        run: RunDir,
        world: World,
        keep_rolling: int,
        check: Callable[[], None] = lambda: None,
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._check, self._publish = check, publish
        self._world = world
        self._keep_rolling = max(1, keep_rolling)
        self._own: set[int] = set()
        """Epochs whose state is this run's: loaded from, or saved by it."""

    def save(self, epoch: int, portable: dict[str, Any], rank_state: dict[str, Any], *, kept: bool) -> Path:
        """Commit a checkpoint of ``epoch`` finished epochs; the path of its portable file.

        ``portable`` is read on rank 0 only. RunFailed on every rank if any of them fails; then the earlier
        checkpoints are as they were and the run may go on.
        """
        self._collective(self._check)
        self._collective(self._clean)
        if self._main(lambda: self._present(epoch, kept)):
            self._own.add(epoch)
            self._collective(self._publish)
            return self._run.portable(epoch)
        staged = self._stage(epoch, portable, rank_state, kept)
        try:
            self._collective(lambda: self._make_way(epoch))
            manifest = self._run.manifest(epoch)
            self._agree(lambda: _commit([file for file in staged if file.path != manifest]))
            self._collective(lambda: _commit([file for file in staged if file.path == manifest]))
        finally:
            for file in staged:
                file.discard()
        self._own.add(epoch)
        self._collective(lambda: self._prune(epoch))
        self._collective(self._publish)
        return self._run.portable(epoch)

    def newest(self) -> Manifest | None:
        """The newest checkpoint whose files are all there and unaltered; None if there is none.

        Rank 0 reads and decides. Every refused one is named, with the reason, in a logged warning.
        """

        def find() -> dict[str, Any] | None:
            for epoch in self._run.manifest_epochs():
                found = self._verified(epoch, warn=True)
                if found is not None:
                    return found.to_dict()
            return None

        value = self._main(find)
        return None if value is None else Manifest.from_dict(value, "newest checkpoint")

    def load(self, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(portable, this rank's state); the latter None where the checkpoint has another number of ranks.

        Each rank checks the sha256 of what it reads (a shared disk may show it an older file) and loads with
        ``weights_only=True``. RunFailed naming the file, on every rank.
        """
        epoch, rank = manifest.epoch, self._world.rank
        same_world = manifest.world_size == self._world.size

        def read(path: Path) -> dict[str, Any]:
            manifest.check_file(self._run.path, path.name)
            return load_plain(path)

        portable, state = self._agree(
            lambda: (
                read(self._run.portable(epoch)),
                read(self._run.rank_state(epoch, rank)) if same_world else None,
            )
        )
        self._own.add(epoch)
        return portable, state

    # Agreement: an error on one rank becomes the same RunFailed on all, so that nobody waits for the dead.

    def _agree(self, work: Callable[[], Any]) -> Any:
        """``work`` on every rank; RunFailed on all of them if any raised, OutOfMemory if memory ended."""

        def told() -> Any:
            try:
                return work()
            except HpcrlError as error:
                raise RunFailed(str(error)) from error
            except Exception as error:
                if ran_out(error):
                    raise  # all_or_none knows it
                raise RunFailed(f"{type(error).__name__}: {error}") from error

        return all_or_none(self._world, told)

    def _main(self, work: Callable[[], Any]) -> Any:
        """``work`` on rank 0; its result on every rank."""
        result = self._agree(lambda: work() if self._world.is_main else None)
        return broadcast_object(self._world, result)

    def _collective(self, work: Callable[[], object]) -> None:
        """``work`` on rank 0, for its effect; the others wait for it."""
        self._agree(lambda: work() if self._world.is_main else None)

    # Writing

    def _stage(
        self, epoch: int, portable: dict[str, Any], rank_state: dict[str, Any], kept: bool
    ) -> list[Staged]:
        """This rank's files, and on rank 0 the manifest, under temporary names; all ranks' or RunFailed."""
        staged: list[Staged] = []
        try:
            parts = [(self._run.rank_state(epoch, self._world.rank), rank_state)]
            if self._world.is_main:
                parts.insert(0, (self._run.portable(epoch), portable))

            def write() -> None:
                for path, state in parts:
                    staged.append(stage(path, partial(torch.save, plain(state))))

            self._agree(write)
            records = {file.path.name: (file.sha256, file.bytes) for file in staged}
            merged: dict[str, FileRecord] = {}
            for part in gather_objects(self._world, records):
                merged.update({name: FileRecord(*record) for name, record in part.items()})
            created = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(epoch, self._world.size, kept, merged, created)
            text = to_json(manifest.to_dict()).encode()
            self._collective(
                lambda: staged.append(stage(self._run.manifest(epoch), lambda file: file.write(text)))
            )
        except BaseException:
            for file in staged:
                file.discard()
            raise
        return staged

    # Rank 0 only

    def _verified(self, epoch: int, *, warn: bool) -> Manifest | None:
        try:
            found = Manifest.read(self._run.manifest(epoch))
            found.check_files(self._run.path)
        except RunFailed as error:
            if warn:
                log.warning("checkpoint of epoch %d refused: %s", epoch, error)
            return None
        return found

    def _present(self, epoch: int, kept: bool) -> bool:
        """Whether this very state is on disk already; makes it kept if it was not."""
        if not self._run.manifest(epoch).exists():
            return False
        found = self._verified(epoch, warn=True)
        if found is None or (epoch not in self._own and self._another_good(epoch)):
            return False
        if epoch not in self._own:
            log.warning("epoch %d is the only good checkpoint; it stays as it is", epoch)
        if kept and not found.kept:
            write_json(self._run.manifest(epoch), dataclasses.replace(found, kept=True).to_dict())
        return True

    def _another_good(self, epoch: int) -> bool:
        others = (other for other in self._run.manifest_epochs() if other < epoch)
        return any(self._verified(other, warn=False) for other in others)

    def _make_way(self, epoch: int) -> None:
        if self._run.manifest(epoch).exists():
            log.warning(
                "the checkpoint of epoch %d is written anew: the run went back to an earlier one", epoch
            )
            self._run.manifest(epoch).unlink()
            fsync_folder(self._run.path)

    def _clean(self) -> None:
        """Temporary files (no rank of this run is writing now) and files that no manifest names."""
        for path in self._run.checkpoint_temporaries():
            _remove(path)
        for epoch, names in self._run.checkpoint_files().items():
            path = self._run.manifest(epoch)
            named: set[str] = set()
            if path.exists():
                try:
                    named = set(Manifest.read(path).files)
                except RunFailed:
                    continue  # a torn manifest's files are evidence; they go when it is pruned
            for name in names - named:
                _remove(self._run.path / name)

    def _prune(self, saved: int) -> None:
        """Keep kept ones and the newest rolling ones up to ``saved``, which has just been committed."""
        rolling = 0
        for epoch in self._run.manifest_epochs():
            if epoch > saved:
                log.warning(
                    "the checkpoint of epoch %d is removed: the run went back to an earlier one", epoch
                )
                self._remove_checkpoint(epoch)
                continue
            try:
                kept = Manifest.read(self._run.manifest(epoch)).kept
            except RunFailed:
                kept = False
            if kept:
                continue
            rolling += 1
            if rolling > self._keep_rolling:
                self._remove_checkpoint(epoch)

    def _remove_checkpoint(self, epoch: int) -> None:
        _remove(self._run.manifest(epoch))
        fsync_folder(self._run.path)
        for name in self._run.checkpoint_files().get(epoch, ()):
            _remove(self._run.path / name)


def _commit(staged: list[Staged]) -> None:
    for file in staged:
        file.commit()
        fsync_folder(file.path.parent)


def _remove(path: Path) -> None:
    """Best effort: what stays behind is cleared by the next save."""
    with contextlib.suppress(OSError):
        path.unlink()
