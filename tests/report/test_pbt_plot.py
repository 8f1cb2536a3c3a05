"""The pictures of a population, and what they are drawn from: who copied whom, and whose weights live on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from made_populations import WINDOWS, begin, made_config, make_population, turn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from hpcrl.pbt.history import ancestry, best_of, read_past
from hpcrl.pbt.population import Population
from hpcrl.report import population_plot
from hpcrl.report.palette import COLOURS, GREY, looks
from hpcrl.report.population_curves import draw_hyperparameters, draw_objective
from hpcrl.report.population_lineage import draw_lineage
from hpcrl.types import HpcrlError

NAMES = ["objective.png", "hyperparameters.png", "lineage.png"]


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Population:
    return make_population(tmp_path_factory.mktemp("four"), "pbt.members=4")


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory) -> Population:
    return make_population(tmp_path_factory.mktemp("sixteen"), "pbt.members=16", late=(5,))


def drawn(draw, population: Population) -> Figure:
    figure = Figure(figsize=(11, 6.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure).draw()
    draw(figure, population, read_past(population))
    figure.canvas.draw()
    return figure


def test_three_pictures_are_written_beside_the_population_or_where_they_are_wanted(four, hpcrl, tmp_path):
    code, out, _ = hpcrl("pbt", "plot", four.path)
    assert code == 0 and out.split() == [str(four.path / name) for name in NAMES]
    code, out, _ = hpcrl("pbt", "plot", four.path, "--out", "a/b")
    assert code == 0 and out.split() == [str(tmp_path / "a/b" / name) for name in NAMES]
    for name in NAMES:
        picture = imread(tmp_path / "a/b" / name)
        assert picture.shape[1] == 1430 and picture[..., :3].std() > 0.05, name


def test_before_the_first_generation_there_is_nothing_to_draw(tmp_path, hpcrl):
    population = make_population(tmp_path, "pbt.members=2", late=(0, 1))
    code, _, err = hpcrl("pbt", "plot", population.path)
    assert code == 2 and err == (
        f"error: {population.path}: no member has published a generation yet: nothing to draw\n"
    )


def test_a_file_in_place_of_the_folder_is_one_line_and_nothing_is_written(four, tmp_path, hpcrl):
    (tmp_path / "file").write_text("mine")
    code, out, err = hpcrl("pbt", "plot", four.path, "--out", "file")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert f"{tmp_path / 'file'} is no folder" in err and (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_pictures_as_they_were(four, tmp_path, monkeypatch):
    (tmp_path / "objective.png").write_bytes(b"before")

    def refuse(path, data):
        raise HpcrlError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(population_plot, "write_bytes", refuse)
    with pytest.raises(HpcrlError, match="No space left"):
        population_plot.write_plots(four, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["objective.png"]
    assert (tmp_path / "objective.png").read_bytes() == b"before"


@pytest.mark.parametrize("draw", [draw_objective, draw_hyperparameters, draw_lineage])
@pytest.mark.parametrize("size", [4, 16])
def test_no_two_words_touch_each_other_and_none_leaves_the_picture(draw, size, four, sixteen):
    figure = drawn(draw, four if size == 4 else sixteen)
    texts = [
        text
        for axes in figure.axes
        for text in (*axes.texts, *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label)
        if text.get_text() and text.get_visible()
    ]
    texts += [text for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)) if legend
              for text in legend.get_texts()]  # fmt: skip
    assert len(texts) > size
    # Of an annotation its words alone, without its line; ticks on a log axis also stand beyond its limits.
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    boxes = [(words, box) for words, box in boxes if not words.startswith("$")]
    for words, box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, words
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        assert not one.overlaps(other), f"{a!r} touches {b!r}"


def test_each_of_few_members_has_a_colour_and_of_many_the_best_at_the_end(four, sixteen):
    few = looks(read_past(four))
    assert len({look.colour for look in few.values()}) == 4 and all(look.named for look in few.values())
    past = read_past(sixteen)
    many = looks(past)
    best = best_of(past)
    assert best is not None
    named = [member for member, look in many.items() if look.named]
    objectives = {one.member: one.newest.record.objective for one in past if one.newest}
    assert set(named) == set(sorted(objectives, key=objectives.__getitem__)[-3:])
    assert many[best.member].best and many[best.member].colour == COLOURS[0]
    assert [look.colour for look in many.values()].count(GREY) == 13


def made_line(folder: Path) -> Population:
    """Member 2 copies 0 at 1, then 0 copies 2 at 2, in three generations; member 1 is in the middle."""
    sets = ("pbt.members=3", "train.epochs=15", "pbt.quantile=0.34")
    population = Population.create(made_config(folder, *sets), "0" * 64, WINDOWS)
    takers = {number: begin(population, number) for number in (0, 1, 2)}
    noise = np.random.default_rng(1).normal(0, 0.01, (3, 3, WINDOWS))
    worth = [{0: 3, 1: 2, 2: 1}, {0: 1, 1: 2, 2: 3}, {0: 3, 1: 2, 2: 1}]
    for generation, each in enumerate(worth):
        for number in ((1, 0, 2), (1, 2, 0), (0, 1, 2))[generation]:
            turn(takers[number], each[number] + noise[generation, number])
    return population


def test_the_ancestry_of_the_best_leads_through_the_members_that_its_weights_come_from(tmp_path):
    past = read_past(made_line(tmp_path))
    donors = {(one.member, turn.record.generation): turn.donor for one in past for turn in one.turns}
    assert donors[2, 1] == (0, 1) and donors[0, 2] == (2, 2)
    assert [one.exploits for one in past] == [1, 0, 1] and past[0].parent == (2, 2)
    assert best_of(past).member == 0
    assert ancestry(past, 0) == [(0, 3), (2, 2), (0, 1), (0, 0)]
    assert ancestry(past, 1) == [(1, 3), (1, 2), (1, 1), (1, 0)]


def test_the_lineage_is_drawn_through_every_ancestor_in_one_colour(tmp_path):
    axes = drawn(draw_lineage, made_line(tmp_path)).axes[0]
    alive = [line for line in axes.lines if line.get_color() == COLOURS[0] and len(line.get_xdata()) == 2]
    rows = sorted((float(line.get_xdata()[1]), float(line.get_ydata()[0])) for line in alive)
    assert rows == [(1.0, 0.0), (2.0, 2.0), (3.0, 0.0)]  # each stretch ends at a generation of an ancestor


def test_hyperparameters_are_shown_on_their_own_scales_with_their_bounds(four):
    figure = drawn(draw_hyperparameters, four)
    scales = {axes.get_ylabel(): axes.get_yscale() for axes in figure.axes}
    assert scales == {"clip_param": "linear", "1 - gamma": "log", "lr": "log"}
    lr = next(axes for axes in figure.axes if axes.get_ylabel() == "lr")
    past = read_past(four)
    shown = {tuple(line.get_ydata()) for line in lr.lines}
    for one in past:
        values = [turn.record.hyperparameters["learn.lr"] for turn in one.turns]
        assert (values[0], *values) in shown
    assert lr.get_ylim()[0] < 1e-5 and lr.get_ylim()[1] > 3e-3


def test_made_up_bars_are_named_as_such(four):
    assert "planted:L2 (made-up bars: no performance claim)" in population_plot._title(four, read_past(four))
