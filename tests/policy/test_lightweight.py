"""The recurrent net: its scan against a loop, and its size against the transformer's."""

from __future__ import annotations

import pytest
import torch
from policies import E, small_policy

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy import build_policy
from hpcrl.policy.lightweight import own_parameters, scan, transformer_parameters, width_of
from hpcrl.types import HpcrlError


@pytest.mark.parametrize("steps", [1, 2, 3, 16, 37, 256])
def test_the_scan_equals_the_loop_and_so_do_its_gradients(steps):
    generator = torch.Generator().manual_seed(steps)
    keep = torch.rand(3, steps, 5, dtype=torch.float64, generator=generator)
    keep[0, steps // 2] = 0.0  # an episode begins
    inflow = torch.randn(3, steps, 5, dtype=torch.float64, generator=generator)
    before = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    leaves = [x.requires_grad_() for x in (keep, inflow, before)]
    hidden, rows = before, []
    for t in range(steps):
        hidden = keep[:, t] * hidden + inflow[:, t]
        rows.append(hidden)
    expected = torch.stack(rows, 1)
    got = scan(keep, inflow, before)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    weight = torch.randn(3, steps, 5, dtype=torch.float64, generator=generator)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


SIZES = [
    (d_model, layers, mult, entries, assets, kind)
    for d_model in (16, 64, 256)
    for layers, mult in ((1, 1), (2, 4), (5, 2))
    for entries, assets in ((9, 1), (40, 3), (283, 10))
    for kind in ("discrete", "continuous")
] + [(8, 1, 1, 9, 1, "discrete"), (10, 1, 1, 400, 1, "continuous"), (1024, 8, 4, 64, 1, "discrete")]


@pytest.mark.parametrize(("d_model", "layers", "mult", "entries", "assets", "head"), SIZES)
def test_it_has_at_most_a_tenth_of_the_transformers_parameters(d_model, layers, mult, entries, assets, head):
    size = {"d_model": d_model, "layers": layers, "heads": 1, "feedforward_mult": mult, "head": head}

    def count(kind: str) -> tuple[int, int]:
        config = PolicyConfig(model_type=kind, **size)  # type: ignore[arg-type]
        with torch.device("meta"):
            policy = build_policy(config, entries, assets)
        return sum(p.numel() for p in policy.parameters()), assets * policy.distribution.params

    (whole, outputs), (small, _) = count("transformer"), count("lightweight")
    assert 10 * small <= whole
    config = PolicyConfig(model_type="lightweight", **size)  # type: ignore[arg-type]
    assert transformer_parameters(config, entries, outputs) == whole
    width = width_of(config, entries, outputs)
    assert own_parameters(width, config.recurrent_layers, entries, outputs) == small
    assert width <= d_model // 2


def test_the_customary_sizes_keep_half_the_width_and_layers():
    for d_model, layers, entries in ((256, 4, 24), (64, 2, 24), (1024, 8, 120)):
        config = PolicyConfig(model_type="lightweight", d_model=d_model, layers=layers)
        assert width_of(config, entries, 3) == d_model // 2
        assert config.recurrent_layers == layers // 2


def test_a_size_of_which_no_tenth_can_read_the_entries_is_refused():
    config = PolicyConfig(model_type="lightweight", d_model=8, layers=1, heads=1, feedforward_mult=1)
    with pytest.raises(HpcrlError, match=r"policy\.d_model = 8 is too small.*283 entries"):
        build_policy(config, 283, 10)


@torch.no_grad()
def test_a_fresh_net_remembers_over_spans_of_one_token_to_a_window():
    policy = small_policy("lightweight", window=64, layers=2, d_model=64)
    for block in policy.blocks:
        block.gates.weight.zero_()
    block = policy.blocks[0]
    keep, _, _ = block.begin(torch.randn(1, policy.width), torch.ones(1))
    span = 1 / (1 - keep[0])
    assert torch.allclose(span.min(), torch.tensor(2.0)) and torch.allclose(span.max(), torch.tensor(65.0))
    keep, _, _ = block.begin(torch.randn(1, policy.width), torch.zeros(1))
    assert not keep.any()


@torch.no_grad()
def test_memory_stays_float32_in_a_bf16_trunk():
    policy = small_policy("lightweight").to(torch.bfloat16)
    (hidden,) = policy.rebuild(torch.randn(2, 16, E), torch.tensor([16, 0]))
    assert hidden.dtype == torch.float32
