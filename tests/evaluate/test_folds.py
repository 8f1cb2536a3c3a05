"""Folds: nothing within reach of a test block is trained on, on either side; every row is tested once."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpcrl.evaluate.folds import Fold, purged_folds, walk_forward_folds
from hpcrl.types import HpcrlError

ROWS = {"lo": st.integers(0, 50), "rows": st.integers(60, 900), "folds": st.integers(2, 7)}
GAPS = {"purged": st.integers(0, 4), "embargo": st.integers(0, 9)}


def test_by_hand():
    """100 rows, half before; two blocks of 25; 2 rows purged, 3 of embargo."""
    one, two = walk_forward_folds(0, 100, 2, purged=2, embargo=3, validation=0.2)
    assert one == Fold(((0, 31),), (36, 45), (50, 75))
    assert two == Fold(((0, 51),), (56, 70), (75, 100))
    one, two = purged_folds(0, 100, 2, purged=2, embargo=3)
    assert one == Fold(((55, 100),), (0, 0), (0, 50))
    assert two == Fold(((0, 48),), (50, 50), (50, 100))


@settings(max_examples=200, deadline=None)
@given(**ROWS, **GAPS)
def test_rows_are_purged_on_both_sides_of_a_test_block(lo, rows, folds, purged, embargo):
    found = purged_folds(lo, lo + rows, folds, purged=purged, embargo=embargo)
    tested = [row for fold in found for row in range(*fold.test)]
    assert tested == list(range(lo, lo + rows))
    for fold in found:
        trained = {row for side in fold.train for row in range(*side)}
        a, b = fold.test
        out = set(range(a - purged, b + purged + embargo))
        assert trained == set(range(lo, lo + rows)) - out and not fold.overlaps()


@settings(max_examples=200, deadline=None)
@given(
    **ROWS, **GAPS, window=st.sampled_from(["expanding", "rolling"]), share=st.sampled_from([0, 0.15, 0.4])
)
def test_walk_forward_trains_on_the_past_alone(lo, rows, folds, purged, embargo, window, share):
    assume(rows > 8 * (purged + embargo) + 4 * folds)
    options = {"purged": purged, "embargo": embargo, "window": window, "validation": share}
    found = walk_forward_folds(lo, lo + rows, folds, **options)
    assert [row for fold in found for row in range(*fold.test)] == list(range(found[0].test[0], lo + rows))
    gap = purged + embargo
    lengths = set()
    for fold in found:
        (train,) = fold.train
        assert not fold.overlaps() and lo <= train[0] < train[1]
        assert fold.validation[1] == fold.test[0] - gap
        if share:
            assert fold.validation[0] - train[1] == gap
        else:
            assert fold.validation[0] == fold.validation[1] and train[1] == fold.test[0] - gap
        lengths.add(fold.test[0] - train[0])
    assert len(lengths) == (1 if window == "rolling" else folds)


def test_shared_rows_are_noticed():
    assert Fold(((0, 11),), (10, 10), (10, 20)).overlaps()
    assert Fold(((0, 5), (19, 30)), (5, 5), (10, 20)).overlaps()
    assert not Fold(((0, 10), (20, 30)), (10, 10), (10, 20)).overlaps()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 0}, "folds = 0"),
        ({"folds": 30}, "50 rows make no 30 test blocks"),
        ({"folds": 2, "purged": -1}, "purged = -1"),
        ({"folds": 2, "embargo": 60}, "leave no training rows"),
        ({"folds": 2, "first": 1.0}, "first = 1"),
        ({"folds": 2, "validation": 1.0}, "validation = 1"),
        ({"folds": 2, "window": "sliding"}, "'sliding'"),
    ],
)
def test_bad_input_is_one_clear_line(options, said):
    with pytest.raises(HpcrlError, match=said):
        walk_forward_folds(0, 100, **options)
    if said.startswith("folds"):
        with pytest.raises(HpcrlError, match="at least 2"):
            purged_folds(0, 100, **options)
