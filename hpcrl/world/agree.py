"""A mistake that one rank finds is told once and ends all of them, instead of leaving the rest waiting."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.collectives import gather_objects
from hpcrl.world.memory import OutOfMemory, ran_out, shortage_of
from hpcrl.world.world import World

T = TypeVar("T")


def all_or_none(world: World, action: Callable[[], T]) -> T:
    """Run a local action on every rank; if it fails on any, raise the same error on all. Collective."""
    result, failure, shortage = None, None, None
    try:
        result = action()
    except HpcrlError as error:
        failure = (str(error), isinstance(error, RunFailed))
        shortage = shortage_of(error, world)
    except Exception as error:  # whatever it is, the others must not wait for this rank
        if world.size == 1:
            raise
        if ran_out(error):
            traceback.clear_frames(error.__traceback__)  # to agree needs some memory
            shortage = shortage_of(error, world)
        else:
            traceback.print_exc()
        failure = (f"{type(error).__name__}: {error}", True)
    failures = gather_objects(world, failure)
    if short := next(filter(None, gather_objects(world, shortage) if any(failures) else []), None):
        raise OutOfMemory(short)
    ranks: dict[tuple[str, bool], list[int]] = {}
    for rank, found in enumerate(failures):
        if found is not None:
            ranks.setdefault(found, []).append(rank)
    if ranks:
        (message, failed), where = next(iter(ranks.items()))
        if len(where) < world.size:
            message = f"rank {', '.join(map(str, where))}: {message}"
        error_type = RunFailed if failed else HpcrlError
        raise error_type(message)
    return result  # type: ignore[return-value]
