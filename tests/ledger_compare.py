"""Comparing ledgers field by field."""


def assert_same(got, expected, where="ledger", floor=1.0):
    """|got - expected| <= 1e-9 max(floor, |expected|) on every field; lists and names exactly."""
    if isinstance(expected, dict):
        assert set(got) == set(expected), where
        for key, value in expected.items():
            assert_same(got[key], value, f"{where}.{key}", floor)
    elif isinstance(expected, list):
        assert len(got) == len(expected), f"{where}: {got} against {expected}"
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            assert_same(g, e, f"{where}[{i}]", floor)
    elif expected is None or where.endswith("asset") or ".flags" in where:
        assert got == expected, where
    else:
        value = float(expected)
        assert abs(float(got) - value) <= 1e-9 * max(floor, abs(value)), f"{where}: {got} against {expected}"
