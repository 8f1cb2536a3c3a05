"""What an exported file says of itself, and what is refused when it is opened, each in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from evaluate.evaluate_runs import make_data
from export_cases import CASES, FAST, REAL, ROOT, config_of, decided_run, small_case

from hpcrl.config.load import validate
from hpcrl.export.export import export_policy, session_list
from hpcrl.export.metadata import METADATA_KEY, SCHEMA_KEY, Metadata, open_policy
from hpcrl.market.calendar import session_grid
from hpcrl.storage.atomic import sha256_of
from hpcrl.types import HpcrlError

DAY = 86_400
NS = 1_000_000_000


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return small_case(tmp_path_factory, FAST)


# ---- what it says


@pytest.mark.parametrize("kind", CASES)
def test_the_file_says_what_it_is(tmp_path_factory, kind):
    made = small_case(tmp_path_factory, kind)
    told, config, market = made.metadata, made.run.config, made.market
    model, head, assets = kind
    assert (told.model_type, told.distribution["kind"], told.assets) == (model, head, assets)
    assert told.config == json.loads(config.model_dump_json()) and told.config_sha256 == config.digest()
    assert told.checkpoint == {
        "name": "checkpoint_epoch_4.pt",
        "sha256": sha256_of(made.run.path / "checkpoint_epoch_4.pt"),
    }
    assert (told.run, told.epoch, told.env_steps) == (made.run.path.name, 4, 1000)
    assert (told.data["sha256"], told.data["source"]) == (market.sha256, market.source)
    assert told.synthetic == (kind != REAL) and told.symbols == market.symbols
    assert told.n_assets == (2 if assets == "all" else 1)
    assert len(told.entry_names) == told.n_entries == made.run.n_entries
    assert told.entry_names[0] == f"return_1:{market.symbols[0]}" and told.entry_names[-1] == "reward"
    assert told.feature_names == market.feature_names
    assert told.features[0].definition == "ln(close / close 1 bar ago)"
    assert (told.bar_seconds, told.calendar, told.timezone) == (300, "XNYS", "America/New_York")
    assert (told.history, told.burn_in) == (config.policy.padded_history, 250)
    assert told.differences["params"] <= 1e-4 and told.differences["decisions"] > 500
    for note, tensor in zip(told.memory, made.policy.empty_memory(5), strict=True):
        assert note.zeros(5).shape == tensor.shape and str(tensor.dtype) == f"torch.{note.dtype}"
    if head == "discrete":
        assert told.distribution["positions"] == [-1, -0.3, 0, 0.3, 1]
    else:
        assert (told.distribution["low"], told.distribution["high"]) == (-1, 1)


def test_the_file_is_whole_and_its_opset_is_old_enough(case):
    model = onnx.load(case.path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [each.version for each in model.opset_import if each.domain == ""] == [18]
    assert {each.domain for each in model.opset_import} <= {"", "pkg.onnxscript.torch_lib.common"}
    assert not any(weight.external_data for weight in model.graph.initializer)
    assert list(case.path.parent.glob("policy.onnx*")) == [case.path]


@pytest.mark.slow
def test_two_exports_differ_in_nothing_but_their_time(case, tmp_path):
    again = export_policy(case.run.path, tmp_path / "again.onnx")
    one, other = onnx.load(case.path), onnx.load(again.path)
    assert one.graph.SerializeToString(deterministic=True) == other.graph.SerializeToString(
        deterministic=True
    )
    assert replace(again.metadata, created="") == replace(case.exported.metadata, created="")


def test_reading_it_needs_neither_torch_nor_pandas(case):
    code = (
        "import sys; from hpcrl.export.metadata import open_policy; from hpcrl.export.stream import Stream;"
        "import numpy as np; session, told = open_policy(sys.argv[1]); stream = Stream(session, told, 2);"
        "token = np.zeros((2, told.n_entries), np.float32);"
        "print(stream.step(token, np.zeros(2, np.int64)).weight_NA.shape);"
        "bad = {'torch', 'pandas', 'scipy', 'pydantic', 'h5py', 'onnx'} & sys.modules.keys();"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code, case.path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 1)"


def test_sessions_reach_from_the_data_to_a_year_from_now(case):
    told = case.metadata
    opens = np.array([first for first, _ in told.sessions])
    day = np.array(told.session_days)
    assert opens[0] <= case.market.ts_B[0] < told.sessions[0][1]
    now = np.datetime64("now").astype(int)
    assert opens[-1] > now + 350 * DAY
    grid = session_grid("XNYS", 300, int(opens[0]) * NS, int(told.sessions[-1][1] - 1) * NS)
    cut = np.concatenate([np.arange(first, last, 300) for first, last in told.sessions])
    np.testing.assert_array_equal(cut, grid.ts_G // NS)
    np.testing.assert_array_equal(np.unique(day), np.unique(grid.session_G))
    short = [last - first for first, last in told.sessions if last - first < 6.5 * 3600]
    assert short and set(short) == {3.5 * 3600}, "half days"


def test_lunch_breaks_make_two_parts_of_one_session_and_24_7_has_none():
    first = int(np.datetime64("2024-01-11T01:00").astype("datetime64[s]").astype(int))
    parts, days, zone = session_list("XTKS", 300, first)
    assert zone == "Asia/Tokyo" and days[0] == days[1] == first // DAY and len(days) == len(parts)
    assert parts[0] == (first - 3600, first + 5400) and parts[1][0] == first + 9000
    assert session_list("24/7", 300, first) == ((), (), "UTC")


@pytest.mark.parametrize("calendar", ["XSHG", "XKRX"])
def test_exchanges_whose_holidays_are_known_for_less_than_a_year(calendar):
    first = int(np.datetime64("2025-01-06T02:00").astype("datetime64[s]").astype(int))
    parts, _, _ = session_list(calendar, 300, first)
    assert parts[-1][0] > np.datetime64("now").astype(int) - 10 * DAY


@pytest.mark.slow
def test_no_secret_of_a_misplaced_address_gets_into_the_file(tmp_path):
    folder = tmp_path / "postgresql:" / "trader:hunter2@db.example.org"
    folder.mkdir(parents=True)
    data = make_data(folder / "market.h5", symbols=("AAA",))
    config = config_of(data, *FAST)
    tree = config.model_dump(mode="json")
    tree["market"]["path"] = f"{tmp_path}/postgresql://trader:hunter2@db.example.org/market.h5"
    done = export_policy(decided_run(tmp_path / "runs", validate(tree, "test")), tmp_path / "policy.onnx")
    assert b"hunter2" not in (tmp_path / "policy.onnx").read_bytes()
    assert "//***@db.example.org" in done.metadata.config["market"]["path"]


# ---- what opening refuses


def spoil(source: Path, target: Path, change) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def set_prop(key: str, value: str):
    def change(model) -> None:
        for prop in model.metadata_props:
            if prop.key == key:
                prop.value = value

    return change


def test_files_that_are_no_exported_policy(case, tmp_path):
    plain, empty = tmp_path / "plain.onnx", tmp_path / "empty.onnx"
    plain.write_text("no ONNX")
    empty.write_bytes(b"")
    whole = case.path.read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    spoil(case.path, tmp_path / "bare.onnx", lambda model: model.ClearField("metadata_props"))
    spoil(case.path, tmp_path / "newer.onnx", set_prop(SCHEMA_KEY, "2"))
    spoil(case.path, tmp_path / "text.onnx", set_prop(METADATA_KEY, "{not json"))
    spoil(case.path, tmp_path / "list.onnx", set_prop(METADATA_KEY, "[]"))
    spoil(case.path, tmp_path / "deep.onnx", set_prop(METADATA_KEY, "[" * 100_000))
    for name, words in (
        ("missing.onnx", "no such file"),
        (".", "is a folder"),
        ("plain.onnx", "not an ONNX file that onnxruntime"),
        ("empty.onnx", "not an ONNX file"),
        ("half.onnx", "not an ONNX file"),
        ("bare.onnx", "not one of `hpcrl export` .*hpcrl.schema"),
        ("newer.onnx", "hpcrl.schema is '2', this version reads '1'"),
        ("text.onnx", "is not JSON"),
        ("list.onnx", "no JSON object"),
        ("deep.onnx", "is not JSON"),
    ):
        with pytest.raises(HpcrlError, match=words) as error:
            open_policy(tmp_path / name)
        assert (
            "\n" not in str(error.value) and str(tmp_path) in str(error.value) and len(str(error.value)) < 400
        )


def test_weights_in_other_files_are_not_looked_for(case, tmp_path, monkeypatch):
    model = onnx.load(case.path)
    onnx.save(
        model,
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=512,
    )
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    for folder in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(folder)
        with pytest.raises(HpcrlError, match=r"split\.onnx: not an ONNX file that onnxruntime .* runs"):
            open_policy(tmp_path / "split.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", "4"),
        ("epoch", 4.0),
        ("epoch", True),
        ("symbols", "AAA"),
        ("symbols", [1]),
        ("sessions", [[1, 2, 3]]),
        ("features", [{"name": "x"}]),
        ("memory", [{"name": "hidden", "shape": [1, 8], "dtype": "float32"}]),
        ("memory", [{"name": "hidden", "shape": [1, "N", 8], "dtype": "object"}]),
        ("memory", [{"name": "hidden", "shape": [1, "N", -8], "dtype": "float32"}]),
        ("config", None),
        ("data", {"sha256": 3}),
    ],
)
def test_metadata_of_other_types_are_refused(case, tmp_path, key, value):
    tree = json.loads(case.metadata.props()[METADATA_KEY]) | {key: value}
    path = spoil(case.path, tmp_path / "odd.onnx", set_prop(METADATA_KEY, json.dumps(tree)))
    with pytest.raises(HpcrlError, match=rf"odd\.onnx: {key} in its hpcrl\.metadata is "):
        open_policy(path)
    del tree[key]
    path = spoil(case.path, tmp_path / "odd.onnx", set_prop(METADATA_KEY, json.dumps(tree)))
    with pytest.raises(HpcrlError, match=f"lacks '{key}'"):
        open_policy(path)


def test_graphs_with_another_signature_are_refused(case, tmp_path):
    def fix_batch(model) -> None:
        for node in (*model.graph.input, *model.graph.output):
            for size in node.type.tensor_type.shape.dim:
                if size.dim_param:
                    size.dim_value = 1
        del model.graph.value_info[:]

    def rename(model) -> None:
        for node in model.graph.node:
            node.output[:] = ["worth" if name == "value" else name for name in node.output]
        for output in model.graph.output:
            output.name = "worth" if output.name == "value" else output.name

    tree = json.loads(case.metadata.props()[METADATA_KEY])
    more_entries = json.dumps(tree | {"n_entries": tree["n_entries"] + 1})
    for change, words in (
        (fix_batch, r"input 'token' is tensor\(float\) \[1, 34\], tensor\(float\) \['N', 34\]"),
        (rename, "output 'value' is missing"),
        (set_prop(METADATA_KEY, more_entries), r"input 'token' .* \['N', 35\] was expected"),
    ):
        path = spoil(case.path, tmp_path / "other.onnx", change)
        with pytest.raises(HpcrlError, match=words):
            open_policy(path)


def test_metadata_make_the_round_trip(case):
    assert isinstance(case.metadata, Metadata)
    assert replace(case.metadata, created="") == replace(case.exported.metadata, created="")
