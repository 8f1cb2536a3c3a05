"""Rollout and learner agree: what ``step`` did, ``sequence`` recomputes; the ratio starts at 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hpcrl.config.load import load_config
from hpcrl.learn.batches import minibatch, permutation
from hpcrl.learn.ppo import prepare, recompute, update
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_synthetic
from hpcrl.rollout.summary import summarise
from hpcrl.train import Trainer, build, weight_divergence
from hpcrl.types import HpcrlError

TINY = {
    "train": {"world_size": 1, "epochs": 10},
    "env": {"envs_per_gpu": 6, "episode_rollouts": 2, "lot": 1},
    "policy": {"d_model": 32, "layers": 2, "heads": 2, "window": 8},
    "learn": {"rollout": 48, "sequence_length": 16, "batch_size": 48, "lr": 1e-3},
    "engine": {"precision": "fp32"},
}

KINDS = [
    (f"policy.model_type={kind}", f"policy.head={head}")
    for kind in ("transformer", "lightweight")
    for head in ("discrete", "continuous")
]


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    path = tmp_path_factory.mktemp("ppo") / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=600)
    config = load_config(base=TINY, environment={}, overrides=[f"market.path={path}"])
    return load_market(config.market)


def trainer_of(market, world, *sets: str, critic: float = 1.0) -> Trainer:
    config = load_config(base=TINY, environment={}, overrides=sets)
    trainer = build(config, world, market, fit_scaler(market, *market.split_range("train")))
    policy = trainer.collector.policy
    with torch.no_grad():  # the actor starts nearly uniform, which would hide a difference
        snapshot = trainer.engine.snapshot()
        # A narrow Gaussian multiplies the rounding of its mean by more than the tolerance has room for.
        spread = 0.3 if config.policy.head == "discrete" else 0.1
        snapshot["weights"]["actor.weight"] = spread * torch.randn_like(snapshot["weights"]["actor.weight"])
        snapshot["weights"]["critic.weight"] = critic * torch.randn_like(snapshot["weights"]["critic.weight"])
        trainer.engine.load(snapshot)
    trainer.engine.refresh(policy)
    return trainer


class Recorder:
    """Keeps the log-probabilities and values that ``step`` gave during a rollout."""

    def __init__(self, trainer: Trainer) -> None:
        self.params, self.values = [], []
        step = trainer.collector.policy.step
        self.distribution = trainer.collector.policy.distribution

        def recording(token, age, memory):
            params, value = step(token, age, memory)
            self.params.append(params)
            self.values.append(value)
            return params, value

        trainer.collector.policy.step = recording

    def take(self, rollout):
        params = torch.stack(self.params[:-1], 1)
        values = torch.stack(self.values[:-1], 1)
        self.params, self.values = [], []
        action = rollout.steps(rollout.action_CNQA)
        return self.distribution.log_prob_and_entropy(params, action)[0], values


def bankrupt_at(trainer: Trainer, steps: set[int]) -> None:
    """Let three environments go bankrupt at chosen steps of every rollout, by the simulator's own end."""
    simulator, count = trainer.collector.simulator, [0]
    step = simulator.step

    def breaking(weight):
        outcome = step(weight)
        if count[0] % 48 in steps:
            broke = torch.zeros(simulator.n_envs, 1, dtype=torch.bool)
            broke[:3] = True
            simulator._renew_bankrupt(broke)
            outcome = outcome._replace(terminated_N=outcome.terminated_N | broke[:, 0])
        count[0] += 1
        return outcome

    simulator.step = breaking


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("assets", "ends"), [("single", set()), ("single", {0, 47}), ("all", {7, 8, 15, 16, 30})], ids=str
)
def test_sequence_recomputes_what_step_did_over_several_rollouts(market, one_rank, kind, assets, ends):
    trainer = trainer_of(market, one_rank, *kind, f"env.assets={assets}")
    bankrupt_at(trainer, ends)
    recorder = Recorder(trainer)
    for epoch in range(4):
        rollout, tally = trainer.collector.collect(epoch)
        log_prob, value = recorder.take(rollout)
        got_p, got_v = recompute(trainer.engine, rollout, torch.arange(18), 3)
        assert (rollout.steps(got_p.view(3, 6, 16)) - log_prob).abs().max() <= 1e-5
        assert (rollout.steps(got_v.view(3, 6, 16)) - value).abs().max() <= 1e-5
        assert log_prob.std() > 0.05
        assert rollout.terminated_CNQ.sum() == 3 * len(ends) == tally.sums[-1]
        assert bool(rollout.truncated_CNQ[-1, 3:, -1].all()) == (epoch % 2 == 1)
        update(trainer.engine, rollout, trainer.scale, trainer.config, epoch, one_rank)
        trainer.engine.refresh(trainer.collector.policy)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_ratio_is_one_on_the_first_minibatch(market, one_rank, precision, kind):
    trainer = trainer_of(market, one_rank, *kind, f"engine.precision={precision}")
    recorder = Recorder(trainer)
    for epoch in range(3):
        rollout, _ = trainer.collector.collect(epoch)
        stepped, _ = recorder.take(rollout)
        order = permutation(18, 0, epoch, 0, 0)
        scale = replace(trainer.scale)
        targets = prepare(trainer.engine, rollout, scale, order, trainer.config, one_rank)
        batch = minibatch(rollout, order[:3])
        log_prob, _, _ = trainer.engine(*batch.arguments())
        assert (log_prob - targets.log_prob[batch.rows]).abs().max() <= 1e-5
        # What rollout and learner round differently, and why it is recomputed; the recurrence is float32.
        if precision == "bf16" and "policy.model_type=transformer" in kind:
            away = (rollout.steps(targets.log_prob.view(3, 6, 16)) - stepped).abs().max()
            assert away > 1e-4
        learnt = update(trainer.engine, rollout, trainer.scale, trainer.config, epoch, one_rank)
        assert learnt["first_log_ratio"] <= 1e-5 and learnt["approx_kl"] > 0
        trainer.engine.refresh(trainer.collector.policy)


def test_an_update_raises_the_probability_of_what_paid(market, one_rank):
    trainer = trainer_of(market, one_rank, "learn.entropy_coef=0", "learn.gamma=0", critic=0.0)
    rollout, _ = trainer.collector.collect(0)
    rollout.reward_CNQ.copy_((rollout.action_CNQA[..., 0] == 2).float())
    before, _ = recompute(trainer.engine, rollout, torch.arange(18), 3)
    update(trainer.engine, rollout, trainer.scale, trainer.config, 0, one_rank)
    after, _ = recompute(trainer.engine, rollout, torch.arange(18), 3)
    long = rollout.action_CNQA.flatten(0, 1)[..., 0] == 2
    assert (after - before)[long].mean() > 0 > (after - before)[~long].mean()


@pytest.mark.parametrize("model", ["transformer", "lightweight"])
def test_an_update_moves_the_weights_toward_what_paid(market, one_rank, model):
    sets = [f"policy.model_type={model}", "policy.head=continuous", "policy.weight_low=-0.5"]
    trainer = trainer_of(
        market, one_rank, *sets, "learn.entropy_coef=0", "learn.gamma=0", "env.assets=all", critic=0.0
    )
    distribution = trainer.collector.policy.distribution
    before, _ = trainer.collector.collect(0)
    weight = distribution.weights(before.action_CNQA)
    assert weight.shape[-1] == 2 and -0.5 <= weight.min() < 0 < weight.max() <= 1
    before.reward_CNQ.copy_(weight[..., 0] - weight[..., 1])
    old = weight.mean((0, 1, 2))
    update(trainer.engine, before, trainer.scale, trainer.config, 0, one_rank)
    trainer.engine.refresh(trainer.collector.policy)
    after, _ = trainer.collector.collect(1)
    new = distribution.weights(after.action_CNQA).mean((0, 1, 2))
    assert new[0] > old[0] and new[1] < old[1]


@pytest.mark.parametrize("head", ["discrete", "continuous"])
def test_shares_count_every_action_of_every_asset(market, one_rank, head):
    trainer = trainer_of(market, one_rank, f"policy.head={head}", "env.assets=all")
    rollout, tally = trainer.collector.collect(0)
    shares = trainer.collector.policy.distribution.shares
    metrics = summarise(rollout, tally, shares, one_rank)
    found = {name: value for name, value in metrics.items() if name.startswith("action_share/")}
    assert list(found) == [f"action_share/{share}" for share in shares]
    assert sum(found.values()) == pytest.approx(1) and metrics["action_share_max"] == max(found.values())
    assert tally.share_counts.sum() == rollout.action_CNQA.numel() == 6 * 48 * 2


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("policy.head=continuous", "continuous in -1 to 1"),
        ("policy.model_type=lightweight", "lightweight d_model 32"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_with_both_named(market, one_rank, item, says):
    donor = trainer_of(market, one_rank).portable()
    with pytest.raises(
        HpcrlError, match="transformer d_model 32 x 2 layers, window 8, 3 positions"
    ) as caught:
        trainer_of(market, one_rank, item).adopt(donor)
    assert says in str(caught.value)


def test_a_checkpoint_from_before_a_key_existed_is_read_with_its_default(market, one_rank):
    donor = trainer_of(market, one_rank).portable()
    for key in ("head", "weight_low", "weight_high"):
        del donor["config"]["policy"][key]
    trainer = trainer_of(market, one_rank)
    trainer.adopt(donor)
    found = trainer.engine.snapshot()["weights"]
    assert all(torch.equal(found[name], weight) for name, weight in donor["model"]["weights"].items())


def test_early_stop_ends_the_epochs_and_is_told(market, one_rank):
    trainer = trainer_of(market, one_rank, "learn.target_kl=1e-9", "learn.ppo_epochs=4")
    rollout, _ = trainer.collector.collect(0)
    assert update(trainer.engine, rollout, trainer.scale, trainer.config, 0, one_rank)["ppo_epochs"] == 1


def test_a_poisoned_rollout_moves_no_weight_and_is_counted(market, one_rank):
    trainer = trainer_of(market, one_rank)
    rollout, _ = trainer.collector.collect(0)
    rollout.reward_CNQ[0, 0, 0] = float("nan")
    before = trainer.engine.snapshot()["weights"]
    learnt = update(trainer.engine, rollout, trainer.scale, trainer.config, 0, one_rank)
    assert learnt["skipped_steps"] == 4 * trainer.config.minibatches
    after = trainer.engine.snapshot()["weights"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_actions_are_independent_of_the_number_of_environments(market, one_rank):
    many, few = trainer_of(market, one_rank), trainer_of(market, one_rank, "env.envs_per_gpu=3")
    wide, _ = many.collector.collect(0)
    slim, _ = few.collector.collect(0)
    assert torch.equal(wide.token_CNQE[:, :3, 0], slim.token_CNQE[:, :3, 0])
    assert torch.equal(wide.action_CNQA[:1, :3], slim.action_CNQA[:1])


def test_collecting_and_saving_touch_no_random_stream(market, one_rank):
    trainer = trainer_of(market, one_rank)
    state = torch.random.get_rng_state()
    trainer.collector.collect(0)
    trainer.portable()
    trainer.rank_state()
    assert torch.equal(state, torch.random.get_rng_state())
    assert weight_divergence(trainer.collector.policy, one_rank) == 0


def test_the_rollout_policy_is_the_engines_after_each_refresh(market, one_rank):
    trainer = trainer_of(market, one_rank, "engine.precision=bf16")
    rollout, _ = trainer.collector.collect(0)
    update(trainer.engine, rollout, trainer.scale, trainer.config, 0, one_rank)
    trainer.engine.refresh(trainer.collector.policy)
    weights = trainer.engine.snapshot()["weights"]
    for name, parameter in trainer.collector.policy.named_parameters():
        assert torch.equal(parameter, weights[name].to(torch.bfloat16)), name
