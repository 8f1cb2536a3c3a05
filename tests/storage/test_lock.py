"""The lock of a folder: who is refused, and what the refusal advises."""

from __future__ import annotations

import pytest

from hpcrl.storage.lock import hold
from hpcrl.types import HpcrlError


def test_the_option_for_a_lost_process_is_named_where_there_is_one(tmp_path):
    with hold(tmp_path / "lock"):
        with pytest.raises(HpcrlError, match=r"stop that first \(is it lost with its node: --take-over\)$"):
            hold(tmp_path / "lock")
        hold(tmp_path / "lock", take_over=True).close()
        with pytest.raises(HpcrlError, match=r"is being staged by process \d+ on .*; stop that first$"):
            hold(tmp_path / "lock", doing="staged")
