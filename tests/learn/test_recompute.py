"""Activation checkpointing: the same losses, gradients and weights, bit for bit, with much less kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learnt import course, same

from hpcrl.config.load import load_config
from hpcrl.config.policy import PolicyConfig
from hpcrl.market.stage import stage_synthetic
from hpcrl.policy import Policy, build_policy
from hpcrl.types import HpcrlError

SCRIPT = Path(__file__).with_name("recompute_ranks.py")
E, LAYERS = 12, 6
MODELS = ["transformer", "lightweight"]


@pytest.fixture(scope="module")
def market_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recompute") / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=600)
    return path


def policy_of(model: str, dtype: torch.dtype = torch.float32) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(model_type=model, d_model=64, layers=LAYERS, heads=2, window=8)
    policy = build_policy(config, E, 2).to(dtype)
    torch.nn.init.normal_(policy.critic.weight, std=0.1)
    return policy


def learn_from(policy: Policy) -> tuple[list[torch.Tensor], int, int]:
    """Gradients of one loss, the bytes kept for the backward pass, and how many layers ran in all."""
    generator = torch.Generator().manual_seed(1)
    token = torch.randn(4, 24, E, generator=generator)
    age = torch.arange(24).repeat(4, 1) % 17  # an episode ends within
    action = torch.randint(0, 3, (4, 24, 2), generator=generator)
    kept: dict[int, int] = {}
    ran = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def count(*_: object) -> None:
        ran[0] += 1

    weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    norms = [module for name, module in policy.named_modules() if name.endswith((".norm", "attention_norm"))]
    hooks = [norm.register_forward_hook(count) for norm in norms]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_prob, entropy, value = policy(token, policy.empty_memory(4), age, action)
        loss = (log_prob * value).mean() - entropy.mean() + value.square().mean()
        held = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    for hook in hooks:
        hook.remove()
    return [weight.grad for weight in policy.parameters()], held, ran[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_the_same_and_a_fraction_is_kept(model, dtype):
    plain, recomputing = policy_of(model, dtype), policy_of(model, dtype)
    recomputing.recomputes = True
    (whole, all_kept, once), (again, few_kept, twice) = learn_from(plain), learn_from(recomputing)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    inputs = plain.layers * 4 * 24 * plain.embed.out_features * dtype.itemsize  # what no hook shows
    assert few_kept + inputs < 0.4 * all_kept, (few_kept, inputs, all_kept)
    assert twice == 2 * once > 0


@pytest.mark.parametrize("model", MODELS)
def test_without_gradients_nothing_is_computed_twice_and_memories_are_rebuilt(model):
    policy = policy_of(model)
    history, length = torch.randn(3, 16, E), torch.tensor([16, 5, 0])
    before = policy.rebuild(history, length)
    policy.recomputes = True
    assert all(torch.equal(a, b) for a, b in zip(before, policy.rebuild(history, length), strict=True))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_updates_are_the_same(market_file, one_rank, model, precision):
    sets = (f"market.path={market_file}", f"policy.model_type={model}", f"engine.precision={precision}")
    same(course(one_rank, *sets), course(one_rank, *sets, "engine.activation_checkpointing=true"))


@pytest.mark.slow
def test_updates_of_two_ranks_are_the_same_where_weights_are_sharded(market_file, run_on_ranks):
    for done in run_on_ranks(SCRIPT, market_file, "bf16,3", timeout=300):
        assert "all held" in done.stdout, done.stdout + done.stderr


@pytest.mark.soak
def test_soak_updates_of_two_ranks_are_the_same_at_every_stage(market_file, run_on_ranks):
    cases = ("fp32,0", "fp32,1", "fp32,2", "fp32,3", "bf16,1", "bf16,2")
    for done in run_on_ranks(SCRIPT, market_file, *cases, timeout=500):
        assert "all held" in done.stdout, done.stdout + done.stderr


def test_a_resumed_run_may_change_it_and_it_is_no_other_config():
    given = load_config(environment={}, overrides=["engine.activation_checkpointing=true"])
    assert given.digest() == load_config(environment={}).digest()
    with pytest.raises(HpcrlError, match="true or false is needed"):
        load_config(environment={}, overrides=["engine.activation_checkpointing=some"])
