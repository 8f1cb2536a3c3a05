import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def stage(hpcrl, postgrest, monkeypatch, tmp_path):
    """``stage(more...) -> (exit code, stderr)`` of `hpcrl stage supabase` into market.h5, in this process."""
    from staging import SYMBOLS, arguments

    monkeypatch.setenv("SUPABASE_URL", postgrest.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", postgrest.key)

    def run(*more: object, symbols=SYMBOLS[:3]) -> tuple[int, str]:
        code, out, err = hpcrl(*arguments("supabase", tmp_path / "market.h5", symbols, *more))
        assert postgrest.key not in out + err
        return code, " ".join(err.split())

    return run
