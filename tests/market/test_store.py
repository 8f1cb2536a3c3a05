import dataclasses
import json
import subprocess
import sys

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that the files use)
import numpy as np
import pytest
from market_data import ROOT, walk

from hpcrl.config.market import MarketConfig
from hpcrl.market.bars import ARRAYS
from hpcrl.market.load import load_market
from hpcrl.market.stage import stage_frame, stage_synthetic
from hpcrl.market.store import StoreWriter, read_store, write_store
from hpcrl.types import HpcrlError


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return stage_frame(walk(400), tmp_path_factory.mktemp("store") / "m.h5", source="test", calendar="24/7")


@pytest.fixture
def copy(staged, tmp_path):
    """A copy of the file that a test may spoil."""
    path = tmp_path / "copy.h5"
    path.write_bytes(staged.path.read_bytes())
    return path


def test_what_is_written_is_read_back_bit_for_bit(staged, tmp_path):
    bars, header = read_store(staged.path)
    assert header["sha256"] == staged.sha256
    again = write_store(tmp_path / "again.h5", bars, header)
    assert again == staged.sha256
    other, _ = read_store(tmp_path / "again.h5")
    for name, array in bars["BTC/USD"].arrays():
        copied = getattr(other["BTC/USD"], name)
        assert copied.dtype == ARRAYS[name] and copied.tobytes() == array.tobytes(), name


def test_the_header_is_complete(staged):
    with h5py.File(staged.path) as file:
        header = {key: json.loads(value) for key, value in file.attrs.items()}
    assert header["format"] == "hpcrl-market" and header["format_version"] == 2
    assert header["source"] == "test" and header["calendar"] == "24/7" and header["timezone"] == "UTC"
    assert (
        header["bar_seconds"] == 300 and header["price_adjustment"] == "unknown" and header["burn_in"] == 250
    )
    assert header["created"].endswith("Z")
    assert header["symbols"]["BTC/USD"] == {
        "rows": 400,
        "present": 400,
        "first": "2024-03-01T00:00:00Z",
        "last": "2024-03-02T09:15:00Z",
    }
    assert list(header["feature_definitions"]) and header["sha256"] == staged.sha256
    assert {"query", "git_commit", "feature_names"} <= set(header)


def test_the_hash_is_of_contents_and_not_of_their_origin(staged, tmp_path):
    options = {"calendar": "24/7"}
    other = stage_frame(walk(400), tmp_path / "b.h5", source="elsewhere", query={"x": 1}, **options)
    assert other.sha256 == staged.sha256
    assert other.path.read_bytes() != staged.path.read_bytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_the_hash_sees_a_change_of_any_array(name, staged, tmp_path):
    bars, header = read_store(staged.path)
    one = bars["BTC/USD"]
    array = getattr(one, name).copy()
    if name == "present":
        array[7] = False
    elif name == "delist":
        array[7] = 3.0
    else:
        array[7] = np.nextafter(array[7], np.inf) if array.dtype.kind == "f" else array[7] + 1
    changed = dataclasses.replace(one, **{name: array})
    assert write_store(tmp_path / "c.h5", {"BTC/USD": changed}, header) != staged.sha256


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(HpcrlError, match=r"nowhere\.h5: no such file; `hpcrl stage`"):
        load_market(MarketConfig(path=str(tmp_path / "nowhere.h5")))
    with pytest.raises(HpcrlError, match="is a folder"):
        load_market(MarketConfig(path=str(tmp_path)))


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("timestamp,open\n")
    with pytest.raises(HpcrlError, match="not a whole market file"):
        read_store(tmp_path / "text.h5")
    (tmp_path / "empty.h5").write_bytes(b"")
    with pytest.raises(HpcrlError, match="not a whole market file"):
        read_store(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(HpcrlError, match="an HDF5 file, but not one of `hpcrl stage`"):
        read_store(tmp_path / "other.h5")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, copy):
    whole = copy.read_bytes()
    copy.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(HpcrlError, match=r"copy\.h5: not a whole market file"):
        read_store(copy)


def test_another_format_version_is_refused(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs["format_version"] = json.dumps(1)
    with pytest.raises(HpcrlError, match="format version 1; 2 is read"):
        read_store(copy)


def test_a_header_with_gaps_is_refused(copy):
    with h5py.File(copy, "r+") as file:
        del file.attrs["calendar"]
    with pytest.raises(HpcrlError, match="header lacks calendar"):
        read_store(copy)


def test_altered_contents_are_refused(copy):
    with h5py.File(copy, "r+") as file:
        file["symbols/BTC%2FUSD/close"][17] *= 1.0000001
    with pytest.raises(HpcrlError, match="contents do not match their sha256"):
        read_store(copy)


def test_an_altered_header_that_matters_is_refused(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs["bar_seconds"] = json.dumps(60)
    with pytest.raises(HpcrlError, match="contents do not match their sha256"):
        read_store(copy)


def test_no_flipped_byte_goes_unnoticed(copy):
    """A damaged byte is either refused or lies where nothing is stored."""
    whole, rng = copy.read_bytes(), np.random.default_rng(0)
    good, header = read_store(copy)
    refused = 0
    for place in rng.integers(0, len(whole), 60):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0x55
        copy.write_bytes(spoiled)
        try:
            bars, again = read_store(copy)
        except HpcrlError:
            refused += 1
            continue
        assert again["sha256"] == header["sha256"]
        for name, array in good["BTC/USD"].arrays():
            assert getattr(bars["BTC/USD"], name).tobytes() == array.tobytes()
    assert refused > 20


def test_a_failure_while_writing_leaves_nothing_and_the_old_file_whole(staged, tmp_path):
    bars, header = read_store(staged.path)
    path = tmp_path / "m.h5"
    write_store(path, bars, header)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="source died"), StoreWriter(path, header) as writer:
        writer.add(bars["BTC/USD"])
        raise RuntimeError("source died")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.h5"]
    with pytest.raises(HpcrlError, match="twice"), StoreWriter(path, header) as writer:
        writer.add(bars["BTC/USD"])
        writer.add(bars["BTC/USD"])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.h5"]


FULL = """
import os, resource, sys
from hpcrl.market.stage import stage_synthetic
from hpcrl.types import RunFailed
for room in (0, 3000, 100_000, 330_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        stage_synthetic(sys.argv[1] + "/m.h5", symbols=("A", "B"), bars=2000)
    except RunFailed as error:
        print(error.exit_code, error, os.listdir(sys.argv[1]))
"""


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    """A limit on file size stands in for the full disk: the same failing write() below HDF5."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")  # HDF5's own driver crashes here, at exit
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("1 cannot write ") and "m.h5: File too large" in line and line.endswith("[]")


def test_a_folder_that_cannot_be_made_is_one_clear_error(staged, tmp_path):
    bars, header = read_store(staged.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(HpcrlError, match=r"cannot write .*Not a directory|cannot write .*exists"):
        write_store(tmp_path / "file" / "m.h5", bars, header)


def test_a_reader_takes_no_lock(copy):
    """Reading works while another process holds the file's lock."""
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(copy)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        read_store(copy)
        holder.communicate("")


def test_a_header_beyond_hdf5s_old_limit_of_64_kib_fits(staged, tmp_path):
    bars, header = read_store(staged.path)
    header["query"] = {"symbols": [f"SYMBOL{n:05d}" for n in range(20_000)]}
    write_store(tmp_path / "many.h5", bars, header)
    assert read_store(tmp_path / "many.h5")[1]["query"] == header["query"]


def test_unknown_symbols_and_features_list_what_the_file_has(tmp_path):
    path = stage_synthetic(tmp_path / "s.h5", symbols=("AAPL", "MSFT"), bars=10).path
    with pytest.raises(HpcrlError, match=r"no symbol 'APPL' \(did you mean 'AAPL'\?\); it has AAPL, MSFT"):
        load_market(MarketConfig(path=str(path), symbols=("APPL",)))
    with pytest.raises(HpcrlError, match=r"no feature 'rsi' \(did you mean 'rsi14'\?\); it has return_1, "):
        load_market(MarketConfig(path=str(path), features=("rsi",)))
    with pytest.raises(HpcrlError, match=r"names MSFT more than once"):
        load_market(MarketConfig(path=str(path), symbols=("MSFT", "MSFT")))
