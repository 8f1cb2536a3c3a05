import pandas as pd
import pytest
from market_data import walk

from hpcrl.market.stage import stage_files, stage_synthetic
from hpcrl.market.store import read_store
from hpcrl.types import HpcrlError


def stage(path, tmp_path, **options):
    return stage_files(path, tmp_path / "out.h5", **{"calendar": "24/7", **options})


def test_csv_and_parquet_of_the_same_bars_hash_alike_to_the_last_bit(tmp_path):
    table = walk(400)
    table.to_csv(tmp_path / "bars.csv", index=False)
    stamped = table.assign(timestamp=pd.to_datetime(table["timestamp"]))
    stamped.to_parquet(tmp_path / "bars.parquet")
    stamped.set_index("timestamp").to_parquet(tmp_path / "indexed.parquet")
    csv = stage(tmp_path / "bars.csv", tmp_path)
    assert stage(tmp_path / "bars.parquet", tmp_path).sha256 == csv.sha256
    assert stage(tmp_path / "indexed.parquet", tmp_path).sha256 == csv.sha256
    bars, _ = read_store(csv.path)
    assert (bars["BTC/USD"].close == table["close"].to_numpy()).all()


def test_a_folder_is_read_whole_whatever_its_files_are_called(tmp_path):
    table = walk(400)
    folder = tmp_path / "in"
    folder.mkdir()
    table.iloc[:200].to_csv(folder / "z_first_half.csv", index=False)
    table.iloc[200:].to_parquet(folder / "a_second_half.parquet")
    walk(300, 1, "ETH").to_csv(folder / "eth.csv", index=False)
    (folder / "README.txt").write_text("not a table")
    result = stage(folder, tmp_path)
    assert result.rows == {"BTC/USD": 400, "ETH": 300}
    table.to_csv(tmp_path / "one.csv", index=False)
    alone = stage(tmp_path / "one.csv", tmp_path)
    assert stage(folder, tmp_path, symbols=("BTC/USD",)).sha256 == alone.sha256


def test_a_conflict_between_two_files_names_both_place_and_file(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    walk(300).to_csv(folder / "a.csv", index=False)
    walk(300, 5).iloc[299:].to_csv(folder / "b.csv", index=False)
    with pytest.raises(HpcrlError, match=r"1 conflicting_duplicate.*\n.*b\.csv line 2, BTC/USD"):
        stage(folder, tmp_path)


def test_symbols_are_chosen_in_the_order_asked_for(tmp_path):
    pd.concat([walk(300, 0, "B"), walk(300, 1, "A"), walk(300, 2, "C")]).to_csv(
        tmp_path / "x.csv", index=False
    )
    assert list(stage(tmp_path / "x.csv", tmp_path).rows) == ["A", "B", "C"]
    assert list(stage(tmp_path / "x.csv", tmp_path, symbols=("C", "A")).rows) == ["C", "A"]
    with pytest.raises(HpcrlError, match="no rows for symbol D; it has A, B, C"):
        stage(tmp_path / "x.csv", tmp_path, symbols=("D", "A"))


def test_symbols_that_look_like_missing_values_or_paths_survive(tmp_path):
    names = ["NA", "null", "TRUE", "BRK.B", ".", "ADA/BTC", "7203"]
    pd.concat([walk(300, n, s) for n, s in enumerate(names)]).to_csv(tmp_path / "x.csv", index=False)
    result = stage(tmp_path / "x.csv", tmp_path)
    assert list(result.rows) == sorted(names)
    assert sorted(read_store(result.path)[0]) == sorted(names)


def test_extra_columns_become_features_known_at_their_bar(tmp_path):
    table = walk(400)
    table["cue"] = range(400)
    table["ignored"] = "text"
    table.to_csv(tmp_path / "x.csv", index=False)
    bars, header = read_store(stage(tmp_path / "x.csv", tmp_path, features=("cue",)).path)
    assert header["feature_names"][-1] == "cue" and len(header["feature_names"]) > 20
    assert bars["BTC/USD"].features[:, -1].tolist() == list(range(400))
    assert set(header["feature_definitions"]) == set(header["feature_names"])
    only, header = read_store(stage(tmp_path / "x.csv", tmp_path, features=("cue",), computed=False).path)
    assert header["feature_names"] == ["cue"] and only["BTC/USD"].features.shape == (400, 1)


@pytest.mark.parametrize("value", ["", "inf", "x", "1e300"])
def test_a_feature_that_is_no_finite_number_is_refused(value, tmp_path):
    table = walk(400)
    table["cue"] = "1.5"
    table.loc[30, "cue"] = value
    table.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(HpcrlError, match="cue"):
        stage(tmp_path / "x.csv", tmp_path, features=("cue",))


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("volume", True, "volume is True"),
        ("close", [1.0], r"close is \[1.0\]|close is array"),
        ("volume", pd.Timestamp("2024-03-01"), "volume is Timestamp"),
        ("symbol", ["BTC"], r"symbol .*'BTC'.* is no text"),
        ("symbol", b"BTC", "symbol b'BTC' is no text"),
        ("symbol", False, r"symbol .*False.* is no text"),
    ],
)
def test_cells_of_parquet_that_are_no_numbers_or_names_are_refused(column, cell, message, tmp_path):
    table = walk(300)
    table[column] = [cell] * 300
    table.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(HpcrlError, match=message):
        stage(tmp_path / "x.parquet", tmp_path)


def test_whole_numbers_are_names_of_symbols(tmp_path):
    walk(300).assign(symbol=7203).to_parquet(tmp_path / "x.parquet")
    assert list(stage(tmp_path / "x.parquet", tmp_path).rows) == ["7203"]


@pytest.mark.parametrize(
    ("scale", "unit"), [(1, "s"), (1000, "ms"), (1_000_000, "us"), (1_000_000_000, "ns")]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_stamps_that_are_numbers_come_with_their_remedy(scale, unit, kind, tmp_path):
    table = walk(300)
    seconds = pd.to_datetime(table["timestamp"]).dt.as_unit("s").astype("int64")
    table["timestamp"] = seconds * scale
    file = tmp_path / f"x.{kind}"
    table.to_csv(file, index=False) if kind == "csv" else table.to_parquet(file)
    with pytest.raises(HpcrlError, match=f"numbers .*Unix time in {unit}, convert them.*unit='{unit}'"):
        stage(file, tmp_path)
    table["timestamp"] = pd.to_datetime(table["timestamp"].astype("int64"), unit=unit, utc=True)
    table.to_parquet(tmp_path / "good.parquet")
    assert stage(tmp_path / "good.parquet", tmp_path).rows == {"BTC/USD": 300}


def test_a_symbol_or_feature_that_is_given_twice_is_named(tmp_path):
    walk(300).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(HpcrlError, match="symbol BTC/USD is given twice"):
        stage(tmp_path / "x.csv", tmp_path, symbols=("BTC/USD", "BTC/USD"))
    with pytest.raises(HpcrlError, match="feature cue is given twice"):
        stage(tmp_path / "x.csv", tmp_path, features=("cue", "cue"))
    with pytest.raises(HpcrlError, match="symbol A is given twice"):
        stage_synthetic(tmp_path / "x.h5", symbols=("A", "A"))


def test_corporate_actions_are_carried_through(tmp_path):
    table = walk(400).assign(split="", dividend="", delist="")
    table.loc[100, "split"] = "2"
    table.loc[150, "dividend"] = "0.5"
    table.loc[399, "delist"] = "88.5"
    table.to_csv(tmp_path / "x.csv", index=False)
    bars = read_store(stage(tmp_path / "x.csv", tmp_path).path)[0]["BTC/USD"]
    assert bars.split[100] == 2 and bars.split.sum() == 401
    assert bars.dividend[150] == 0.5 and bars.dividend.sum() == 0.5
    assert bars.delist[399] == 88.5 and pd.isna(bars.delist[:399]).all()


BROKEN = {
    "empty.csv": (b"", "the file is empty"),
    "header.csv": (b"timestamp,symbol,open,high,low,close,volume\n", "has a header but no rows"),
    "ragged.csv": (
        b"timestamp,symbol,open,high,low,close,volume\n2024-03-01T00:00:00Z,A,1,1,1,1,1,9,9\n",
        "not a readable CSV table",
    ),
    "binary.csv": (b"\xff\xfe\x00\x81" * 50, "not a readable CSV table"),
    "doubled.csv": (b"timestamp,symbol,open,high,low,close,close,volume\n", "names close more than once"),
    "bars.parquet": (b"PAR1 not really", "not a readable Parquet file"),
    "bars.xlsx": (b"PK", "unknown kind of file '.xlsx'"),
    "epoch.csv": (
        b"timestamp,symbol,open,high,low,close,volume\n1709251200,A,1,1,1,1,1\n",
        r"timestamps are numbers \(1709251200\); if they are Unix time in s, .*pandas.to_datetime",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_tables_of_bars_are_refused_by_name(name, tmp_path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HpcrlError, match=message) as caught:
        stage(tmp_path / name, tmp_path)
    assert name in str(caught.value)
    assert not (tmp_path / "out.h5").exists()


def test_missing_paths_and_empty_folders_are_named(tmp_path):
    with pytest.raises(HpcrlError, match=r"nowhere\.csv: no such file or folder"):
        stage(tmp_path / "nowhere.csv", tmp_path)
    with pytest.raises(HpcrlError, match="no CSV or Parquet files"):
        stage(tmp_path, tmp_path)


def test_blank_lines_do_not_shift_the_line_that_is_named(tmp_path):
    table = walk(300)
    table.loc[40, "volume"] = -1
    lines = table.to_csv(index=False).splitlines()
    lines.insert(10, "")
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n\n")
    with pytest.raises(HpcrlError, match="line 43, BTC/USD"):
        stage(tmp_path / "x.csv", tmp_path)
