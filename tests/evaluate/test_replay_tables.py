"""Replay of tables: the golden ledgers again, weights carried forward, and every bad table named."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from ledger_compare import assert_same
from random_cases import random_case

from hpcrl.evaluate.replay import replay_case, replay_frame, replay_tables
from hpcrl.types import HpcrlError

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("[0-9]*.json"))
BARS = """timestamp,symbol,open,high,low,close,volume
2022-04-18T16:00:00Z,A,10,11,9,10,1000
2022-04-18T16:00:00Z,B,20,21,19,20,1000
2022-04-18T16:05:00Z,A,10,12,10,11,1000
2022-04-18T16:10:00Z,A,11,13,11,12,1000
2022-04-18T16:10:00Z,B,21,22,20,21,1000
2022-04-18T16:15:00Z,A,12,13,11,12,1000
2022-04-18T16:15:00Z,B,21,22,20,22,1000
"""
WEIGHTS = """timestamp,symbol,weight
2022-04-18T16:00:00Z,A,0.5
2022-04-18T16:05:00Z,B,-0.25
2022-04-18T16:10:00Z,A,0
"""
COSTS = "half_spread: 1e-4\nbps: 2\nparticipation: null\n"


def tables_of(case):
    """A case's bars and weights as rows; a missing bar keeps its row with empty prices."""
    bars = [
        {"timestamp": bar["ts"], "symbol": asset, **bar[asset]}
        for bar in case["bars"]
        for asset in case["assets"]
    ]
    weights = [
        {"timestamp": bar["ts"], "symbol": asset, "weight": weight}
        for bar, action in zip(case["bars"], case["actions"], strict=False)
        for asset, weight in action.items()
    ]
    return pd.DataFrame(bars), pd.DataFrame(weights)


def write(folder, bars=BARS, weights=WEIGHTS, costs=COSTS):
    paths = [folder / name for name in ("bars.csv", "weights.csv", "costs.yaml")]
    for path, text in zip(paths, (bars, weights, costs), strict=True):
        path.write_text(text)
    return paths


def options(bars, weights, costs, out):
    return ["replay", "--bars", bars, "--weights", weights, "--costs", costs, "--out", out]


def with_column(name, first):
    """The bars with one more column, empty but in the first row."""
    header, start, *others = BARS.splitlines()
    return "\n".join([f"{header},{name}", f"{start},{first}", *(f"{line}," for line in others)])


def rows_of_csv(path):
    """The CSV ledger as rows of the JSON form."""
    rows = []
    for line in csv.DictReader(path.open(newline="")):
        assets = [key.partition(":")[2] for key in line if key.startswith("position:")]
        keys = ("qty", "price", "commission")
        fills = [
            {"asset": a, **{key: line[f"{key}:{a}"] for key in keys}} for a in assets if line[f"qty:{a}"]
        ]
        fills.sort(key=lambda fill: float(fill["qty"]) > 0)  # sells before buys
        row = {key: value for key, value in line.items() if ":" not in key and key != "timestamp"}
        row |= {"position": {a: line[f"position:{a}"] for a in assets}, "fills": fills}
        rows.append(row | {"flags": line["flags"].split(), "reward": line["reward"] or None})
    return rows


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_case_as_tables_gives_the_golden_ledger(hpcrl, tmp_path, path):
    case = json.loads(path.read_text())
    bars, weights = tables_of(case)
    bars.to_csv("bars.csv", index=False)
    weights.to_csv("weights.csv", index=False)
    Path("costs.yaml").write_text(yaml.safe_dump(case["config"]))
    code, out, err = hpcrl(*options("bars.csv", "weights.csv", "costs.yaml", "ledger.csv"))
    assert code == 0 and out == "ledger.csv\n", err
    assert_same(rows_of_csv(tmp_path / "ledger.csv"), case["expected"])
    # every digit: the CSV read back is the ledger of the case, bit for bit
    direct = replay_case(case)["rows"]
    for got, expected in zip(rows_of_csv(tmp_path / "ledger.csv"), direct, strict=True):
        assert [float(got[key]) for key in ("cash", "equity", "fees")] == [
            expected[key] for key in ("cash", "equity", "fees")
        ]


def test_frames_and_parquet_give_the_same_ledger(tmp_path):
    case = json.loads(next(path for path in GOLDEN if path.stem.startswith("08")).read_text())
    bars, weights = tables_of(case)
    want = replay_tables(bars, weights, case["config"])
    assert_same(want["rows"], case["expected"])
    prices = ["open", "high", "low", "close", "volume"]
    bars[prices] = bars[prices].astype(float)
    weights["weight"] = weights["weight"].astype(float)
    assert bars["close"].isna().any()
    bars["timestamp"] = pd.to_datetime(bars["timestamp"], unit="s", utc=True)
    bars.to_parquet(tmp_path / "bars.parquet")
    weights.to_parquet(tmp_path / "weights.parquet")
    files = tmp_path / "bars.parquet", tmp_path / "weights.parquet"
    assert replay_tables(*files, case["config"]) == want


def test_weight_holds_until_the_symbols_next_row_and_missing_bars_do_not_trade(tmp_path):
    rows = replay_tables(*write(tmp_path))["rows"]
    explicit = [("00", 0.5, 0), ("05", 0.5, -0.25), ("10", 0, -0.25)]
    weights = [
        {"timestamp": f"2022-04-18T16:{minute}:00Z", "symbol": symbol, "weight": weight}
        for minute, *pair in explicit
        for symbol, weight in zip("AB", pair, strict=True)
    ]
    costs = {"half_spread": 1e-4, "bps": 2}
    assert replay_tables(tmp_path / "bars.csv", pd.DataFrame(weights), costs)["rows"] == rows
    empty = BARS.replace("05:00Z,A,10,12", "05:00Z,B,,,,,\n2022-04-18T16:05:00Z,A,10,12")
    assert empty != BARS and replay_tables(*write(tmp_path, empty))["rows"] == rows
    assert [row["position"]["B"] < 0 for row in rows] == [False, False, True, True]
    assert rows[0]["equity"] == 100_000 and rows[3]["position"]["A"] == 0


def test_symbols_keep_their_order_of_appearance_and_stamps_their_meaning(hpcrl, tmp_path):
    files = write(tmp_path)
    assert hpcrl(*options(*files, "a.csv"))[0] == 0
    seconds = {f"2022-04-18T16:{m}:00Z": str(1650297600 + 60 * int(m)) for m in ("00", "05", "10", "15")}
    bars, weights = BARS, WEIGHTS
    for stamp, unix in seconds.items():
        spaced = stamp[:-1].replace("T", " ") + "+00:00"
        bars, weights = bars.replace(stamp, unix), weights.replace(stamp, spaced)
    assert hpcrl(*options(*write(tmp_path, bars, weights), "b.csv"))[0] == 0
    naive = [text.replace("00Z", "00") for text in (BARS, WEIGHTS)]
    assert hpcrl(*options(*write(tmp_path, *naive), "c.csv"))[0] == 0
    first, *others = ((tmp_path / f"{name}.csv").read_text() for name in "abc")
    assert others == [first, first]
    header, start = first.splitlines()[:2]
    assert header == (
        "bar,timestamp,cash,equity,equity_raw,fees,spread_cost,impact_cost,financing,dividends,reward,flags,"
        "position:A,qty:A,price:A,commission:A,position:B,qty:B,price:B,commission:B"
    )
    assert start == "0,2022-04-18T16:00:00Z,100000.0,100000.0,100000.0,0.0,0.0,0.0,0.0,0.0,,,0.0,,,,0.0,,,"
    assert hpcrl(*options(*files, "ledger.json"))[0] == 0
    assert len(json.loads((tmp_path / "ledger.json").read_text())["rows"]) == 4


def test_corporate_actions_halts_and_sigma_come_from_their_columns(tmp_path):
    lines = BARS.splitlines()
    extra = {0: ",sigma,split,dividend,delist,halted", 4: ",0.002,2,0.5,,", 5: ",,,,,true", 6: ",,,,,FALSE"}
    bars = "\n".join(line + extra.get(n, ",,,,,") for n, line in enumerate(lines)).replace(
        "16:15:00Z,B,21,22,20,22,1000,,,,", "16:15:00Z,B,,,,,,,,,9.5"
    )
    rows = replay_tables(*write(tmp_path, bars))["rows"]
    assert rows[2]["flags"] == ["split:A", "dividend:A", "no_fill:B"]
    assert rows[3]["flags"] == ["delisted:B", "no_fill:B"]
    assert rows[2]["dividends"] == pytest.approx(0.5 * rows[2]["position"]["A"], rel=0.1)


ALL_OF_THEM = ("zones of two tables", "weights of another day")
# what: (table, old text, new text, parts of the message)
BAD = {
    "price of 0": ("bars", "10,12,10,11", "10,12,0,11",
        ["bars.csv, line 4, A at 2022-04-18T16:05:00Z: low = 0"]),
    "negative price": ("bars", "10,12,10,11", "-10,12,10,11", ["line 4, A", "open = -10 must be above 0"]),
    "NaN price": ("bars", "10,12,10,11", "10,12,10,nan", ["line 4, A", "close = 'nan' is not finite"]),
    "infinite price": ("bars", "10,12,10,11", "10,inf,10,11", ["line 4, A", "high = 'inf'"]),
    "text price": ("bars", "10,12,10,11", "10,12,10,x", ["line 4, A", "close = 'x' is not a number"]),
    "half a bar": ("bars", "10,12,10,11", "10,12,,11", ["line 4, A", "low is missing while open is given"]),
    "crossed": ("bars", "10,12,10,11", "10,9,10,11", ["line 4, A", "high = 9 is below"]),
    "missing volume": ("bars", "10,12,10,11,1000", "10,12,10,11,",
        ["line 4, A", "volume is missing; give 0"]),
    "negative volume": ("bars", "10,12,10,11,1000", "10,12,10,11,-1", ["line 4, A", "volume = -1"]),
    "no volume column": ("bars", ",volume", ",vol",
        ["bars.csv: unknown column 'vol'; did you mean 'volume'"]),
    "unknown column": ("bars", BARS, with_column("adj", "1"), ["unknown column 'adj'"]),
    "split of 0": ("bars", BARS, with_column("split", "0"),
        ["line 2, A", "split = 0 must be above 0"]),
    "halted": ("bars", BARS, with_column("halted", "no"),
        ["line 2, A", "halted = 'no' must be true or false"]),
    "bar twice": ("bars", "16:05:00Z,A", "16:00:00Z,A",
        ["line 4, A", "2022-04-18T16:00:00Z' again, as in line 2"]),
    "bar out of order": ("bars", "16:10:00Z,A", "16:01:00Z,A", ["line 5, A", "which is before line 4"]),
    "no symbol": ("bars", "16:05:00Z,A", "16:05:00Z,", ["line 4: symbol = None is no name"]),
    "no time": ("bars", "2022-04-18T16:05:00Z,A", "noon,A", ["line 4, A", "'noon' is neither ISO 8601"]),
    "almost ISO": ("bars", "16:05:00Z", "16:05:00'Z", ["neither ISO 8601"]),
    "another date form": ("bars", "2022-04-18T16:05:00Z", "04/18/2022 16:05", ["neither ISO 8601"]),
    "no such day": ("bars", "04-18T16:05", "02-30T16:05", ["neither ISO 8601"]),
    "number of Python": ("bars", "10,1000", "10,1_000", ["line 2, A", "volume = '1_000' is not a number"]),
    "empty time": ("bars", "2022-04-18T16:05:00Z,A", ",A", ["line 4, A", "None is no point in time"]),
    "milliseconds": ("bars", "2022-04-18T16:05:00Z,A", "1650297900000,A", ["must be unix seconds"]),
    "half seconds": ("bars", "16:05:00Z,A", "16:05:00.5Z,A", ["line 4, A", "must be whole seconds"]),
    "date without dashes": ("bars", "2022-04-18T16:05:00Z,A", "20220418,A", ["line 4", "write 2022-04-18"]),
    "zone here and there": ("bars", "16:05:00Z,A", "16:05:00,A", ["line 4", "without a zone", "with one"]),
    "zones of two tables": ("weights", "00Z", "00",
        ["weights.csv, line 2", "without a zone", "bars.csv with"]),
    "header only": ("bars", BARS, BARS.splitlines()[0], ["bars.csv: has a header but no rows"]),
    "empty file": ("bars", BARS, "", ["bars.csv: the file is empty"]),
    "column twice": ("bars", "high", "open", ["the header names open more than once"]),
    "too many fields": ("bars", "11,1000", "11,1000,7",
        ["bars.csv, line 4: 8 fields, but the header names 7"]),
    "cut off": ("bars", ",21,22,20,22,1000\n", "", ["bars.csv, line 8: 2 fields, but the header names 7"]),
    "weight text": ("weights", "0.5", "half",
        ["weights.csv, line 2, A at 2022-04-18T16:00:00Z: weight = 'half'"]),
    "weight NaN": ("weights", "0.5", "NaN", ["line 2, A", "weight = 'NaN' is not finite"]),
    "weight infinite": ("weights", "0.5", "-inf", ["line 2, A", "weight = '-inf' is not finite"]),
    "weight empty": ("weights", "0.5", "", ["line 2, A", "weight is empty; 0 is flat"]),
    "weight beyond": ("weights", "0.5", "1e300", ["line 2, A", "weight = 1e+300 is beyond"]),
    "weight twice": ("weights", "05:00Z,B", "00:00Z,A", ["weights.csv, line 3, A", "again, as in line 2"]),
    "weight of an unknown symbol": ("weights", ",B,", ",C,",
        ["weights.csv, line 3", "symbol 'C' is not in", "known are A, B"]),
    "weight between bars": ("weights", "16:05", "16:06",
        ["weights.csv, line 3, B at 2022-04-18T16:06:00Z", "is no bar of", "and 2022-04-18T16:10:00Z"]),
    "weights of another day": ("weights", "2022-04-18", "2022-05-18",
        ["line 2, A", "no bar of", "reach from 2022-04-18T16:00:00Z to 2022-04-18T16:15:00Z"]),
    "weights without a symbol": ("weights", ",symbol", "", ["weights.csv"]),
    "bars given as weights": ("weights", WEIGHTS, BARS, ["weights.csv: unknown column 'open'"]),
    "unknown cost": ("costs", "bps", "bsp", ["costs.yaml: unknown config key 'bsp'; did you mean 'bps'"]),
    "cost out of bounds": ("costs", "bps: 2", "half_spread: 2", ["costs.yaml", "half_spread is given twice"]),
    "cost too large": ("costs", "1e-4", "0.7",
        ["costs.yaml: half_spread = 0.7 must be at least 0 and below 0.5"]),
    "costs of an unknown symbol": ("costs", "bps: 2", "symbols: {AB: {bps: 2}}",
        ["costs.yaml, symbols: unknown asset 'AB'; did you mean"]),
    "fill lag": ("costs", "bps: 2", "fill_lag: 3", ["costs.yaml: fill_lag = 3 must be 0, 1 or 2"]),
    "costs as a list": ("costs", COSTS, "- 1", ["costs.yaml: expected lines of the form key: value"]),
    "no YAML": ("costs", "bps: 2", "bps: [", ["costs.yaml", "not valid YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_table_is_one_line_that_names_place_and_value(hpcrl, tmp_path, what):
    table, old, new, parts = BAD[what]
    texts = {"bars": BARS, "weights": WEIGHTS, "costs": COSTS}
    assert old in texts[table]
    texts[table] = texts[table].replace(old, new, -1 if what in ALL_OF_THEM else 1)
    files = write(tmp_path, **texts)
    before = sorted(tmp_path.iterdir())
    code, _, err = hpcrl(*options(*(file.name for file in files), "ledger.csv"))
    assert code == 2 and err.count("\n") == 1, err
    for part in parts:
        assert part in err, err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("", "give --case, or --bars, --weights and --costs"),
        ("--case c.json --bars bars.csv", "--case and --bars exclude each other"),
        ("--bars bars.csv", "belong together: --weights and --costs is missing"),
        ("--bars bars.csv --weights weights.csv", "belong together: --costs is missing"),
        ("--bars none.csv --weights weights.csv --costs costs.yaml", "none.csv: no such file"),
        ("--bars bars.csv --weights weights.csv --costs none.yaml", "none.yaml: cannot be read"),
        ("--bars costs.yaml --weights weights.csv --costs costs.yaml", "unknown kind of file '.yaml'"),
        ("--bars . --weights weights.csv --costs costs.yaml", "is a folder"),
    ],
)
def test_incomplete_or_mixed_options_are_one_line(hpcrl, tmp_path, arguments, part):
    write(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, err = hpcrl("replay", *arguments.split(), "--out", "ledger.csv")
    assert code == 2 and err.count("\n") == 1 and part in err, err
    assert sorted(tmp_path.iterdir()) == before


def test_no_input_is_written_over(hpcrl, tmp_path):
    for file in (files := write(tmp_path)):
        code, _, err = hpcrl(*options(*files, file))
        assert code == 2 and "one of the inputs" in err
    assert [file.read_text() for file in files] == [BARS, WEIGHTS, COSTS]


@pytest.mark.parametrize("seed", range(20))
def test_random_cases_as_tables_give_the_same_ledger(seed):
    """Late listings, missing bars, halts, corporate actions, costs by symbol, every fill lag."""
    case = random_case(seed)
    bars, weights = tables_of(case)
    assert replay_tables(bars, weights, case["config"]) == replay_case(case)


def test_frames_are_named_by_row(tmp_path):
    bars, weights = (pd.read_csv(file) for file in write(tmp_path)[:2])
    weights.loc[1, "weight"] = float("nan")
    with pytest.raises(HpcrlError, match="weights, row 1, B at 2022-04-18T16:05:00Z: weight is empty"):
        replay_tables(bars, weights, {})
    bars.loc[2, "close"] = 0.0
    with pytest.raises(HpcrlError, match=r"bars, row 2, A at .*: close = 0 must be above 0"):
        replay_tables(bars, weights, {})


def test_fills_at_the_close_just_seen_are_said_to_be_so(hpcrl, tmp_path):
    code, out, err = hpcrl(*options(*write(tmp_path, costs="fill_lag: 0\nbps: 2"), "l.csv"))
    assert code == 0 and out == "l.csv\n" and err.startswith("WARNING: ") and "fill_lag = 0" in err
    code, _, err = hpcrl(*options(*write(tmp_path, costs="fill_lag: 2\nbps: 2"), "l.csv"))
    assert code == 0 and err == ""


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_the_ledger_as_a_frame_holds_every_number_of_its_rows(path):
    case = json.loads(path.read_text())
    rows, frame = replay_case(case)["rows"], replay_frame(case)
    assert frame["bar"].tolist() == [row["bar"] for row in rows]
    assert frame["flags"].tolist() == [" ".join(row["flags"]) for row in rows]
    stamps = [int(stamp.timestamp()) for stamp in frame["timestamp"]]
    assert stamps == [bar["ts"] for bar in case["bars"][: len(rows)]]
    for key in (
        "cash",
        "equity",
        "equity_raw",
        "fees",
        "spread_cost",
        "impact_cost",
        "financing",
        "dividends",
    ):
        assert frame[key].tolist() == [row[key] for row in rows]
    assert frame["reward"][1:].tolist() == [row["reward"] for row in rows[1:]] and pd.isna(frame["reward"][0])
    for asset in case["assets"]:
        assert frame[f"position:{asset}"].tolist() == [row["position"][asset] for row in rows]
        fills = [{fill["asset"]: fill for fill in row["fills"]}.get(asset) for row in rows]
        for key in ("qty", "price", "commission"):
            found = frame[f"{key}:{asset}"].tolist()
            assert [None if pd.isna(x) else x for x in found] == [fill and fill[key] for fill in fills]


def test_a_frame_of_tables_is_the_csv_of_the_verb(tmp_path, hpcrl):
    paths = write(tmp_path)
    code, _, err = hpcrl(*options(*paths, tmp_path / "out.csv"))
    assert code == 0, err
    written = pd.read_csv(tmp_path / "out.csv", keep_default_na=False, na_values=[""])
    written["timestamp"] = pd.to_datetime(written["timestamp"], utc=True)
    frame = replay_frame(*paths)
    pd.testing.assert_frame_equal(frame, written.assign(flags=written["flags"].fillna("")), check_dtype=False)
    again = replay_frame(pd.read_csv(paths[0]), pd.read_csv(paths[1]), yaml.safe_load(COSTS))
    pd.testing.assert_frame_equal(frame, again)


def test_a_frame_needs_a_case_alone_or_all_three_tables(tmp_path):
    bars, weights, _ = write(tmp_path)
    with pytest.raises(HpcrlError, match="weights is missing: bars, weights and costs"):
        replay_frame(bars)
    with pytest.raises(HpcrlError, match="costs is missing"):
        replay_frame(bars, weights)
    with pytest.raises(HpcrlError, match="give it alone"):
        replay_frame(json.loads(GOLDEN[0].read_text()), costs={})
