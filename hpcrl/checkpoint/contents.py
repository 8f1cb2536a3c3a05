"""What may stand in a checkpoint file: tensors and plain containers, which weights_only=True loads."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from hpcrl.types import RunFailed
from hpcrl.world.memory import ran_out

_PRIMITIVES = (str, bytes, int, float, bool, type(None))

_ZIP = b"PK\x03\x04"  # what torch.save has written since 1.6


def plain(value: Any, where: str = "state") -> Any:
    """``value`` with tensors on the CPU and without the rest of a storage that a view would drag along.

    TypeError naming the key of anything that ``weights_only=True`` would refuse to load.
    """
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        return tensor
    if isinstance(value, dict):
        for key in value:
            if type(key) not in _PRIMITIVES:
                raise TypeError(f"{where}: a key of type {type(key).__name__} cannot be saved")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if type(value) in _PRIMITIVES:
        return value
    raise TypeError(f"{where}: {type(value).__name__} cannot be saved; tensors and plain containers only")


def load_plain(path: Path) -> dict[str, Any]:
    """The dict in ``path``, on the CPU. RunFailed naming the file; nothing in it is ever executed.

    Where memory ends, the error that says so.
    """
    try:
        with open(path, "rb") as handle:
            if handle.read(len(_ZIP)) != _ZIP:
                raise RunFailed(f"{path}: not a checkpoint file")
        value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if ran_out(error):
            raise
        raise RunFailed(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise RunFailed(
            f"{path}: holds more than tensors and plain values; refused, nothing was run"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        if ran_out(error):
            raise
        raise RunFailed(
            f"{path}: not a checkpoint file ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    if not isinstance(value, dict):
        raise RunFailed(f"{path}: a dict was expected, found {type(value).__name__}")
    return value
