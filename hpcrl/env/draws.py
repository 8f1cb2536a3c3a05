"""Random numbers without generator objects: a counter-based hash (splitmix64) in torch int64.

A draw is a pure function of (seed, stream, id, counter), so it depends neither on how many environments
there are nor on the number of ranks, is the same on CPU and CUDA, and is restored by one integer each.
The hash is Steele, Lea and Flood's splitmix64 finaliser (OOPSLA 2014), applied once per key part.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

STREAM_START = 1
"""Stream of the episodes' starts; every other use of ``uniform`` takes a number of its own."""


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as ``value``."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(z: int) -> int:
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = z + _signed(_GOLDEN)
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    return z ^ _shift(z, 31)


def stream_key(seed: int, stream: int) -> int:
    """The int64 that stands for (seed, stream)."""
    return _signed(_mix_int(_mix_int(seed & _MASK) ^ (stream & _MASK)))


def uniform(seed: int, stream: int, id_N: Tensor, counter: int | Tensor) -> Tensor:
    """One float64 in [0, 1) per id.

    ``seed`` and ``stream`` are plain integers, ``id_N`` an int64 tensor, ``counter`` an integer or an
    int64 tensor that broadcasts against it. Same key, same number: on every device, for every N.
    """
    return keyed_uniform(stream_key(seed, stream), id_N, counter)


def keyed_uniform(key: int | Tensor, id_N: Tensor, counter: int | Tensor) -> Tensor:
    """``uniform`` with its (seed, stream) folded beforehand; a tensor of keys [A] broadcasts against ids."""
    return _shift(_mix(_mix(id_N ^ key) ^ counter), 11).to(torch.float64) * 2.0**-53
