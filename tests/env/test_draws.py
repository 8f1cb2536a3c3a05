"""Counter-based draws."""

import torch

from hpcrl.env.draws import uniform


def test_a_draw_depends_on_its_key_alone():
    ids = torch.arange(1000)
    whole = uniform(7, 1, ids, 3)
    assert torch.equal(whole[500:510], uniform(7, 1, ids[500:510], torch.full((10,), 3)))
    assert whole.dtype == torch.float64 and whole.min() >= 0 and whole.max() < 1


def test_every_part_of_the_key_matters():
    ids = torch.arange(2000)
    draws = [uniform(7, 1, ids, 3), uniform(8, 1, ids, 3), uniform(7, 2, ids, 3), uniform(7, 1, ids, 4)]
    draws += [uniform(-7, 1, ids, 3), uniform(7, 1, ids + 2000, 3)]
    for i, one in enumerate(draws):
        for two in draws[:i]:
            assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.1
            assert not (one == two).any()


def test_draws_are_uniform():
    u = uniform(0, 1, torch.arange(200_000), 0)
    counts = torch.histc(u, 100, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi-squared, 99 degrees of freedom
    consecutive = torch.stack([uniform(0, 1, torch.arange(1000), c) for c in range(50)])
    assert abs(torch.corrcoef(torch.stack([consecutive[:-1].ravel(), consecutive[1:].ravel()]))[0, 1]) < 0.02


def test_values_are_pinned():
    """A change of the hash would change every seeded run."""
    got = uniform(42, 1, torch.tensor([0, 1, 2**40]), 5).tolist()
    assert got == PINNED


PINNED = [0.6211370692412241, 0.23717711201592084, 0.3425087402871744]
