"""What is refused before a member trains, or a population begins."""

from __future__ import annotations

import pytest
from population_cases import config, new_population

from hpcrl.config.load import validate, with_values
from hpcrl.config.yaml_file import read_mapping
from hpcrl.pbt.population import check, refuse_other_member
from hpcrl.types import HpcrlError


def test_a_member_trains_with_what_its_population_gave_it_and_nothing_else(tmp_path):
    population = new_population(tmp_path)
    for number in population.members:
        folder = population.folder(number)
        own = validate(read_mapping(folder / "jobs" / "config.yaml"), "jobs/config.yaml")
        refuse_other_member(folder, own)
        refuse_other_member(folder, with_values(own, {"train.world_size": 3, "checkpoint.keep_rolling": 5}))
        for key, value in (("learn.lr", 1e-2), ("env.envs_per_gpu", 4), ("train.seed", 99)):
            with pytest.raises(HpcrlError, match=rf"is member {number} of a population.* another {key} than"):
                refuse_other_member(folder, with_values(own, {key: value}))
    refuse_other_member(tmp_path, config(tmp_path))  # no member


@pytest.mark.parametrize("explore", ["perturb", "resample"])
def test_bounds_that_hold_0_need_another_way_to_explore(tmp_path, explore):
    space = {"learn.entropy_coef": {"low": 0, "high": 0.1}}
    made = config(tmp_path, explore=explore, space=space)
    if explore == "resample":
        return check(made, 16)
    with pytest.raises(HpcrlError, match=r"learn.entropy_coef: no factor leads away from 0.*0 to 0.1"):
        check(made, 16)
