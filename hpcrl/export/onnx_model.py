"""One streaming step as an ONNX graph: scaler, policy and deterministic action, memory in and memory out.

A policy's own ``step`` writes its memory in place, which a graph cannot. The modules here share its weights
and return the memory anew; tests/export holds them equal to ``step``. Each account has a counter of its own:
accounts that joined at different times may share a batch. The graph's signature: ``metadata``.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, cast

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcrl.export.metadata import BATCH, NEXT, MemoryNote
from hpcrl.market.scaler import Scaler
from hpcrl.policy import Policy
from hpcrl.policy.attention import rotary_table
from hpcrl.policy.lightweight import LightweightPolicy, RecurrentBlock
from hpcrl.policy.transformer import Block, TransformerPolicy
from hpcrl.types import HpcrlError, RunFailed

OPSET = 18
"""Of the default ONNX domain: the lowest that torch's exporter writes without converting."""


class StreamingStep(nn.Module):
    """token [N, E] (features raw), age [N], memory -> params, value, weight, next memory."""

    memory_names: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def __init__(self, policy: Policy, scaler: Scaler, n_entries: int) -> None:
        super().__init__()
        self.policy = policy
        columns = policy.n_assets * len(scaler.feature_names)
        self.sizes = [columns, n_entries - columns]
        self.clip = float(scaler.clip)
        self.register_buffer("mean", torch.from_numpy(scaler.mean_F).repeat(policy.n_assets))
        self.register_buffer("std", torch.from_numpy(scaler.std_F).repeat(policy.n_assets))

    def scaled(self, token_NE: Tensor) -> Tensor:
        """As ``Scaler.apply``, on a token's features."""
        feature, rest = token_NE.split(self.sizes, dim=1)
        feature = ((feature - self.mean) / self.std).clamp(-self.clip, self.clip)
        return torch.cat((feature, rest), dim=1)

    def outputs(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        params_NAP, value_N = self.policy.outputs(x_ND)
        distribution = self.policy.distribution
        return params_NAP, value_N, distribution.weights(distribution.mode(params_NAP))


class TransformerStep(StreamingStep):
    memory_names = ("keys", "values", "counter")
    policy: TransformerPolicy
    cos: Tensor
    sin: Tensor
    slot_W: Tensor

    def __init__(self, policy: TransformerPolicy, scaler: Scaler, n_entries: int) -> None:
        super().__init__(policy, scaler, n_entries)
        cos, sin = rotary_table(policy.window, policy.width)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.register_buffer("slot_W", torch.arange(policy.window))

    def forward(
        self, token: Tensor, age: Tensor, keys: Tensor, values: Tensor, counter: Tensor
    ) -> tuple[Tensor, ...]:
        policy, (counter_N,) = self.policy, counter
        distance_NW = (counter_N[:, None] - self.slot_W) % policy.window
        mask = (distance_NW <= age[:, None])[:, None, None, :]
        here = (distance_NW == 0)[:, None, :, None]
        index_N = counter_N % self.cos.shape[0]
        cos, sin = self.cos[index_N].unsqueeze(-2), self.sin[index_N].unsqueeze(-2)
        x = policy.embed(self.scaled(token))
        next_keys, next_values = [], []
        for layer, block in enumerate(cast("Iterable[Block]", policy.blocks)):
            attention = block.attention
            q, k, v = attention.project(block.attention_norm(x), cos, sin)
            k_NHWK = torch.where(here, k.unsqueeze(2), keys[layer])
            v_NHWK = torch.where(here, v.unsqueeze(2), values[layer])
            mixed = F.scaled_dot_product_attention(q.unsqueeze(2), k_NHWK, v_NHWK, attn_mask=mask)
            x = block.feedforward(x + attention.out(mixed.flatten(1)))
            next_keys.append(k_NHWK)
            next_values.append(v_NHWK)
        return *self.outputs(x), torch.stack(next_keys), torch.stack(next_values), counter + 1


class LightweightStep(StreamingStep):
    memory_names = ("hidden",)
    policy: LightweightPolicy

    def forward(self, token: Tensor, age: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        x = self.policy.embed(self.scaled(token))
        after = []
        for layer, block in enumerate(cast("Iterable[RecurrentBlock]", self.policy.blocks)):
            keep, inflow, gate = block.begin(x, age)
            after.append(hidden[layer] * keep + inflow)
            x = block.end(x, after[-1], gate)
        return *self.outputs(x), torch.stack(after)


def streaming_step(policy: Policy, scaler: Scaler, n_entries: int) -> StreamingStep:
    """The functional twin of ``policy.step``, with the scaler before it. HpcrlError where there is none."""
    if policy.dtype != torch.float32:
        raise ValueError(f"a float32 policy is exported, not {policy.dtype}")
    for kind, step in ((TransformerPolicy, TransformerStep), (LightweightPolicy, LightweightStep)):
        if isinstance(policy, kind):
            return step(policy, scaler, n_entries).eval()  # type: ignore[arg-type]
    raise HpcrlError(
        f"a {type(policy).__name__} cannot be exported: hpcrl/export/onnx_model.py has no step of it; "
        "docs/extending.md says how to add one"
    )


def memory_notes(step: StreamingStep) -> tuple[MemoryNote, ...]:
    return tuple(
        MemoryNote(
            name, (tensor.shape[0], BATCH, *tensor.shape[2:]), str(tensor.dtype).removeprefix("torch.")
        )
        for name, tensor in zip(step.memory_names, step.policy.empty_memory(1), strict=True)
    )


def to_onnx(step: StreamingStep, n_entries: int) -> onnx.ModelProto:
    """The graph, one file without outside data. RunFailed where torch's exporter fails."""
    names = step.memory_names
    accounts = 2  # 1 would be taken for a constant
    memory = step.policy.empty_memory(accounts)
    example = (torch.zeros(accounts, n_entries), torch.zeros(accounts, dtype=torch.int64), *memory)
    batch = torch.export.Dim(BATCH, min=1)
    inputs = ("token", "age", *names)
    shapes = {name: {0: batch} for name in inputs} | {name: {1: batch} for name in names}
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    outputs = ["params", "value", "weight", *(NEXT + name for name in names)]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                step,
                example,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                **options,
            )
    except Exception as error:  # torch's exporter raises whatever its stages meet
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(f"torch {torch.__version__} cannot export this policy: {reason}") from error
    assert program is not None
    model = program.model_proto
    model.producer_name = "hpcrl"
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not there and on its own stages."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
