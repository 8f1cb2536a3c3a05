"""Members of a population as they train: taking over a donor, and a whole small population by its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcrl.config.load import load_config
from hpcrl.pbt.population import Population

SCRIPT = Path(__file__).with_name("adopt_ranks.py")
CASES = [(stage, donor, recipient) for stage in (1, 2, 3) for donor in (1, 2) for recipient in (1, 2)]
SUITE = {(1, 2, 1), (2, 2, 2), (3, 2, 2), (3, 2, 1)}


def make_population(place: Path, *sets: str) -> Population:
    wanted = [f"market.path={place}/market.h5", f"pbt.dir={place}/population", "pbt.members=2", *sets]
    config = load_config(place / "tiny.yaml", wanted, environment={})
    made = Population.create(config, "data", 16)
    made.path.rename(place / "moved")
    (place / "population").rmdir()
    (place / "moved").rename(place / "population")
    return Population.open(place / "population")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "donor", "recipient"),
    [pytest.param(*case, marks=() if case in SUITE else pytest.mark.soak) for case in CASES],
)
def test_a_recipient_is_bit_equal_to_its_donor_and_steps_with_the_new_rate(
    place, run_on_ranks, stage, donor, recipient
):
    make_population(place, "pbt.interval=2")
    run_on_ranks(SCRIPT, "donor", place, stage, ranks=donor)
    run_on_ranks(SCRIPT, "recipient", place, stage, ranks=recipient)
    saved = torch.load(place / "checkpoint_epoch_2.pt", weights_only=True)
    found = torch.load(place / "result.pt", weights_only=True)
    model, taken = saved["model"], found["after"]["model"]
    assert taken["step"] == model["step"] > found["before"]["model"]["step"]
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        assert model[part].keys() == taken[part].keys() and len(model[part]) > 10
        for name, tensor in model[part].items():
            assert torch.equal(tensor, taken[part][name]), (part, name)
        assert any(not torch.equal(t, found["before"]["model"][part][n]) for n, t in model[part].items()), (
            part
        )
    assert found["after"]["return_scale"] == saved["return_scale"] != found["before"]["return_scale"]
    for name, tensor in model["weights"].items():
        assert torch.equal(tensor, found["policy"][name]), f"rollouts play another policy: {name}"
    # Its own progress goes on.
    assert found["after"]["epoch"] == 1 and found["lr"] == 2e-3
    once, twice = found["steps"]
    moved = torch.cat([(once[name] - model["weights"][name]).flatten() for name in once]).double()
    double = torch.cat([(twice[name] - model["weights"][name]).flatten() for name in once]).double()
    assert moved.abs().max() == pytest.approx(2e-3, rel=0.9), "an Adam step is about the learning rate"
    assert double.norm() / moved.norm() == pytest.approx(2.0, rel=1e-3)
