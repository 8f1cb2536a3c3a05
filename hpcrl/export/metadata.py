"""What an exported policy says of itself, and the one way to open such a file. Torch and pandas stay out.

The ONNX file's metadata_props hold ``hpcrl.schema`` and ``hpcrl.metadata``, one JSON object: the fields of
``Metadata``. The graph's signature is part of the schema (N: the batch, any number of accounts):

    inputs   token   [N, E]     float32, features raw; scaling is inside
             age     [N]        int64, tokens of the same episode before this one (0: forget all before)
             the memory's tensors by their names, each [L, N, ...] as ``Metadata.memory`` says
    outputs  params  [N, A, P]  float32, the distribution's numbers (logits, or a Gaussian's two)
             value   [N]        float32, scaled return
             weight  [N, A]     float64, target weights of the deterministic action
             next_NAME          the memory after this token, for every tensor of the memory

Refuses, in one line that names the file: another schema, a signature that is not its own, what is no ONNX.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hpcrl.types import HpcrlError

SCHEMA = "1"
SCHEMA_KEY, METADATA_KEY = "hpcrl.schema", "hpcrl.metadata"
BATCH = "N"
"""Stands in a shape for the number of accounts."""
NEXT = "next_"
"""Before a memory tensor's name: what it is after the step."""
DTYPES = {"float32": "tensor(float)", "float64": "tensor(double)", "int64": "tensor(int64)"}
NOWHERE = "/dev/null/outside"
"""A folder that cannot exist."""
LARGEST = 2 << 30
"""Bytes; protobuf reads no more. Guards against reading some other, huge file whole."""


@dataclass(frozen=True)
class FeatureNote:
    name: str
    definition: str


@dataclass(frozen=True)
class MemoryNote:
    """A tensor that one step hands to the next. All zeros: no token seen."""

    name: str
    shape: tuple[int | str, ...]  # with "N" for the batch
    dtype: str  # "float32" or "int64"

    def zeros(self, accounts: int) -> np.ndarray:
        return np.zeros([accounts if size == BATCH else int(size) for size in self.shape], dtype=self.dtype)


@dataclass(frozen=True)
class Metadata:
    version: str  # of hpcrl
    created: str  # ISO 8601, UTC
    run: str
    checkpoint: dict[str, str]  # name, sha256
    epoch: int
    env_steps: int
    model_type: str  # "transformer" or "lightweight"
    precision: str  # "float32"
    config: dict[str, Any]  # resolved, as config.json has it
    config_sha256: str
    data: dict[str, str]  # source, sha256 and path of the market file that it was trained on
    synthetic: bool  # the training bars were made up
    symbols: tuple[str, ...]  # of training; with assets "all" their order is the token's
    assets: str  # "single": one account per symbol; "all": one account over all of them
    n_assets: int  # A
    n_entries: int  # E
    entry_names: tuple[str, ...]  # of the token; with assets "single" as of the first symbol
    features: tuple[FeatureNote, ...]
    bar_seconds: int
    calendar: str  # an exchange's MIC, or 24/7
    timezone: str  # of the exchange; every stamp here and in the market file is UTC
    sessions: tuple[tuple[int, int], ...]  # unix seconds [open, close); a lunch break makes two; () for 24/7
    session_days: tuple[int, ...]  # date of each of ``sessions``, days since 1970-01-01
    history: int  # M, tokens that warm a memory up: those of the policy's context, padded
    burn_in: int  # bars of a symbol before its features may be used
    distribution: dict[str, Any]  # kind "discrete" with positions, or "continuous" with low and high
    memory: tuple[MemoryNote, ...]
    differences: dict[str, Any]  # what the check on export saw: onnxruntime against torch

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    def props(self) -> dict[str, str]:
        """For the ONNX file's metadata_props."""
        return {
            SCHEMA_KEY: SCHEMA,
            METADATA_KEY: json.dumps({"schema": SCHEMA, **asdict(self)}, allow_nan=False),
        }

    def empty_memory(self, accounts: int) -> dict[str, np.ndarray]:
        """By name, of accounts that have seen no token."""
        return {note.name: note.zeros(accounts) for note in self.memory}


def open_policy(path: str | Path, *, threads: int = 1) -> tuple[ort.InferenceSession, Metadata]:
    """The file's session on the CPU, and its metadata. HpcrlError: not there, not an ONNX, of another schema.

    An ONNX whose weights lie in other files is refused: it opens none.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file"
        raise HpcrlError(f"{path}: {kind}; an ONNX file of `hpcrl export` was expected")
    try:
        if path.stat().st_size > LARGEST:
            raise HpcrlError(f"{path}: larger than any ONNX file; one of `hpcrl export` was expected")
        content = path.read_bytes()
    except OSError as error:
        raise HpcrlError(f"{path}: cannot be read: {error.strerror or error}") from None
    session = open_bytes(content, path, threads=threads)
    return session, read_metadata(session, path)


def open_bytes(content: bytes, path: str | Path, *, threads: int = 1) -> ort.InferenceSession:
    """A session over an ONNX file's ``content``; ``path`` is for the error alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, and told in one line
    # Weights in other files would be looked for in the folder that the process stands in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds, with nothing but Exception in common
        reason = " ".join(str(error).split())[:160]
        raise HpcrlError(
            f"{path}: not an ONNX file that onnxruntime {ort.__version__} runs ({reason})"
        ) from None


def read_metadata(session: ort.InferenceSession, path: str | Path) -> Metadata:
    """HpcrlError: no file of `hpcrl export`, one of another schema, or a graph that is not its metadata's."""
    props = session.get_modelmeta().custom_metadata_map
    if SCHEMA_KEY not in props or METADATA_KEY not in props:
        lacking = SCHEMA_KEY if SCHEMA_KEY not in props else METADATA_KEY
        raise HpcrlError(f"{path}: an ONNX file, but not one of `hpcrl export` (its metadata lack {lacking})")
    if props[SCHEMA_KEY] != SCHEMA:
        raise HpcrlError(
            f"{path}: {SCHEMA_KEY} is {props[SCHEMA_KEY][:20]!r}, this version reads {SCHEMA!r}; export the "
            "checkpoint again"
        )
    metadata = _parse(props[METADATA_KEY], path)
    _check_signature(session, metadata, path)
    return metadata


def _parse(text: str, path: str | Path) -> Metadata:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HpcrlError(f"{path}: its {METADATA_KEY} is not JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise HpcrlError(f"{path}: its {METADATA_KEY} is no JSON object")
    made: dict[str, Any] = {}
    for field in fields(Metadata):
        if field.name not in found:
            raise HpcrlError(f"{path}: its {METADATA_KEY} lacks {field.name!r}; export the checkpoint again")
        try:
            made[field.name] = _READERS[str(field.type)](found[field.name])
        except (TypeError, ValueError, KeyError):
            raise HpcrlError(
                f"{path}: {field.name} in its {METADATA_KEY} is {str(found[field.name])[:60]!r}, which is no "
                f"{field.type}; export the checkpoint again"
            ) from None
    return Metadata(**made)


def _exactly(*kinds: type) -> Any:
    def read(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError
        return value

    return read


def _each(read: Any) -> Any:
    def read_all(value: Any) -> tuple:
        return tuple(read(one) for one in _exactly(list)(value))

    return read_all


_text, _whole, _dict = _exactly(str), _exactly(int), _exactly(dict)


def _pair(value: Any) -> tuple[int, int]:
    first, second = _exactly(list)(value)
    return _whole(first), _whole(second)


def _feature(value: Any) -> FeatureNote:
    return FeatureNote(_text(value["name"]), _text(value["definition"]))


def _memory(value: Any) -> MemoryNote:
    shape = _each(_exactly(int, str))(value["shape"])
    note = MemoryNote(_text(value["name"]), shape, _text(value["dtype"]))
    if shape.count(BATCH) != 1 or note.dtype not in DTYPES or any(s != BATCH and int(s) < 1 for s in shape):
        raise ValueError
    return note


def _texts(value: Any) -> dict[str, str]:
    return {_text(key): _text(one) for key, one in _dict(value).items()}


_READERS = {
    "str": _text,
    "int": _whole,
    "bool": _exactly(bool),
    "dict[str, Any]": _dict,
    "dict[str, str]": _texts,
    "tuple[str, ...]": _each(_text),
    "tuple[int, ...]": _each(_whole),
    "tuple[tuple[int, int], ...]": _each(_pair),
    "tuple[FeatureNote, ...]": _each(_feature),
    "tuple[MemoryNote, ...]": _each(_memory),
}
"""By a field's annotation: the value that JSON gave, as the field's; TypeError, ValueError, KeyError."""


def _check_signature(session: ort.InferenceSession, metadata: Metadata, path: str | Path) -> None:
    a, e = metadata.n_assets, metadata.n_entries
    memory = [(note.name, note.dtype, note.shape) for note in metadata.memory]
    inputs = [("token", "float32", (BATCH, e)), ("age", "int64", (BATCH,)), *memory]
    outputs: list[tuple[str, str, tuple[int | str | None, ...]]]
    outputs = [
        ("params", "float32", (BATCH, a, None)),
        ("value", "float32", (BATCH,)),
        ("weight", "float64", (BATCH, a)),
        *((NEXT + name, dtype, shape) for name, dtype, shape in memory),
    ]
    _match("input", session.get_inputs(), inputs, path)
    _match("output", session.get_outputs(), outputs, path)


def _match(
    kind: str, there: Iterable[Any], wanted: Iterable[tuple[str, str, tuple]], path: str | Path
) -> None:
    """None in a wanted shape: any fixed size. A batch may have any name, but must not be fixed."""
    found = {node.name: (node.type, list(node.shape)) for node in there}
    for name, dtype, shape in wanted:
        has_type, has_shape = found.pop(name, (None, []))
        right = len(has_shape) == len(shape) and all(
            isinstance(has, str) if want == BATCH else isinstance(has, int) and want in (None, has)
            for has, want in zip(has_shape, shape, strict=True)
        )
        if has_type != DTYPES[dtype] or not right:
            has = "missing" if has_type is None else f"{has_type} {has_shape}"
            want = f"{DTYPES[dtype]} {['P' if size is None else size for size in shape]}"
            raise HpcrlError(f"{path}: the graph's {kind} {name!r} is {has}, {want} was expected")
    if found:
        raise HpcrlError(
            f"{path}: the graph has an {kind} {sorted(found)[0]!r}, which schema {SCHEMA} has not"
        )
