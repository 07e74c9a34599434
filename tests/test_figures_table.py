"""Figures of a table: each cell drawn is the report's; the paper's beside it."""

import copy
import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_hex

from normlab.errors import UserError
from normlab.report.charts import accuracy, bars, heat_map, heat_maps, learning, ratios
from normlab.report.quantities import Measured
from normlab.report.results import Entry, Results
from normlab.report.table import Difference, Line
from normlab.report.tables import load_table

pytestmark = pytest.mark.filterwarnings("error")

SOURCES = ("BN", "IN", "LN", "GN", "EN", "EN_G32")


def results(rows: dict[str, str], columns: dict[str, str], entries: dict[tuple[str, str], Entry]) -> Results:
    """Of a table with these rows and columns (name -> label), and cells."""
    table = copy.copy(load_table("table2"))
    table.rows, table.columns = ({n: Line(label, []) for n, label in t.items()} for t in (rows, columns))
    table.differences = {"x": Difference("a", "b")}
    names = {"row": next(iter(rows)), "column": next(iter(columns)), "norm": next(iter(rows))}
    records = [names | {"model": "net", "data": "digits", "seed": 0}]
    return Results(table, "digits", table.scale("digits"), records, entries, {}, [], {}, Measured({}))


def cell(printed: float | None, *values: float, diverged: int = 0, missing: int = 0) -> Entry:
    return Entry(printed, values, diverged, missing)


@pytest.fixture
def grid() -> Results:
    """The shape of HN, Fig. 2: rows are sources of the std, columns of the mean."""
    random = np.random.default_rng(0)
    rows, columns = ({f"{what}_{s}": f"{what} {s}" for s in SOURCES} for what in ("std", "mean"))
    entries = {(r, c): cell(random.uniform(90, 95), *random.uniform(80, 99, 2)) for r in rows for c in columns}
    entries["std_LN", "mean_EN_G32"] = cell(None, diverged=1)
    entries["std_IN", "mean_BN"] = cell(93.0, missing=1)
    entries["std_GN", "mean_BN"] = cell(50.0, 98.0)
    return results(rows, columns, entries)


def test_learning_curves_are_means_over_seeds():
    """As long as the shortest run, of the first column alone; a row without a record has no line."""
    rows = {"a": "A", "b": "B", "c": "C"}
    found = results(rows, {"x": "X", "y": "Y"}, {})

    def record(row, column, seed, val, loss):
        epochs = {"val/top1": val, "train/loss": loss}
        norm = {"a": "sn", "b": "sn"}[row]
        return {"row": row, "column": column, "seed": seed, "norm": norm, "model": "net", "data": "digits"} | {
            "epochs_of": epochs
        }

    found = dataclasses.replace(found, records=[
        record("a", "x", 0, [1, 2, 3], [9, 8, 7]), record("a", "x", 1, [3, 6], [5, 4]),
        record("b", "x", 0, [7, 8], [1, 1]),
        record("b", "y", 0, [0, 0], [0, 0]),
    ])  # fmt: skip
    figure = learning(found, panels={"first": ["a", "c"], "second": ["b"]})
    first, second, *ends = ([line.get_ydata().tolist() for line in axis.get_lines()] for axis in figure.axes)
    assert first == [[2, 4], []] and second == [[7, 8]] and ends == [first, second]
    assert [len(axis.collections) for axis in figure.axes] == [1, 0, 1, 0]  # a band over two seeds
    assert figure.axes[0].get_lines()[0].get_color() == figure.axes[1].get_lines()[0].get_color()  # sn's, in both
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["first", "second", *2 * ["the last third"]]
    losses = learning(found, panels={"first": ["a"]}, quantity="loss")
    assert losses.axes[0].get_lines()[0].get_ydata().tolist() == [7, 6]
    found.records[0]["epochs_of"]["step"], found.records[1]["epochs_of"]["step"] = [50, 100, 120], [50, 100]
    axis, _ = learning(found, panels={"first": ["a", "b"]}, along="iteration").axes  # b's record is older
    assert [line.get_xdata().tolist() for line in axis.get_lines()] == [[50, 100], []]
    assert axis.get_xlabel() == "iteration" and figure.axes[0].get_xlabel() == "epoch"
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((2 - 2**0.5, 4 + 8**0.5))  # of 1 and 3, of 2 and 6
    assert not figure.axes[1].collections  # one seed has no spread
    with pytest.raises(UserError, match="quantity 'top5' does not exist"):
        learning(found, panels={"first": ["a"]}, quantity="top5")
    with pytest.raises(UserError, match="row 'd' does not exist"):
        learning(found, panels={"first": ["d"]})


def test_bars():
    """Beside each other for each column; what diverged, was not run or is not printed has none."""
    rows, columns = {"bn": "BN", "gn": "GN", "ws": "GN+WS"}, {"ap": "AP", "mask": "AP_m"}
    entries = {(r, c): cell(40 + i + j, 30 + i, 32 + i) for i, r in enumerate(rows) for j, c in enumerate(columns)}
    entries["bn", "ap"], entries["gn", "mask"] = cell(None, 30, 32), cell(41.0, missing=1)
    entries["ws", "mask"] = cell(42.0, diverged=1)
    figure = bars(results(rows, columns, entries), rows=["bn", "gn", "ws"], columns=["ap", "mask"])
    measured, paper = figure.axes
    assert [bar.get_height() for bar in measured.patches] == [31, 31, 32, 33]
    assert [bar.get_height() for bar in paper.patches] == [41, 41, 41, 42, 42]
    places = [bar.get_x() + bar.get_width() / 2 for bar in measured.patches]
    assert places == pytest.approx([-0.8 / 3, 1 - 0.8 / 3, 0, 0.8 / 3])
    assert measured.get_ylim() == pytest.approx((29, 33.6))
    assert [text.get_text() for text in measured.get_xticklabels()] == ["AP", "AP_m"]
    with pytest.raises(UserError, match="column 'ab' does not exist; did you mean 'ap'"):
        bars(results(rows, columns, entries), rows=["bn"], columns=["ab"])


def test_heat_map(grid):
    figure = heat_map(grid)
    measured, paper = figure.axes[:2]
    for axis, value in ((measured, lambda e: e.mean), (paper, lambda e: e.printed)):
        expected = [[value(grid.entries[r, c]) for c in grid.table.columns] for r in grid.table.rows]
        drawn = axis.images[0].get_array()
        np.testing.assert_allclose(np.asarray(drawn.data, float), np.array(expected, float))
        texts = np.reshape([t.get_text() for t in axis.texts], (6, 6))
        assert texts[0, 0] == f"{expected[0][0]:.1f}"
        assert texts[2, 5] == "–"
        assert [tick.get_text() for tick in axis.get_yticklabels()] == list(SOURCES)
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("mean", "std")
        assert len(axis.patches) == 6  # the diagonal is framed
    assert measured.texts[6].get_text() == ""  # was not run
    low = paper.images[0].norm.vmin
    marked = [text.get_text() for axis in (measured, paper) for text in axis.texts if "↓" in text.get_text()]
    assert marked and f"{min(e.printed for e in grid.entries.values() if e.printed is not None):.1f} ↓" in marked
    bars = [axis.get_xlabel() for axis in figure.axes[2:]]
    assert bars[1] == f"top-1 accuracy in percent; 1 cell below {low:.1f} marked ↓"
    finite = sorted(e.printed for e in grid.entries.values() if e.printed is not None)
    assert finite[0] < low <= finite[1]  # an outlier does not stretch the scale


def test_heat_map_of_what_was_hardly_run():
    entries = {("a", "b"): cell(None, missing=1)}
    figure = heat_map(results({"a": "std BN"}, {"b": "mean BN"}, entries))
    assert [text.get_text() for axis in figure.axes[:2] for text in axis.texts] == ["", "–"]


def test_heat_maps_are_panels_of_rows():
    rows = {f"{norm}_{light}": f"{norm.upper()} light {light}" for norm in ("bn", "sn") for light in (0, 1)}
    columns = {"b32": "32", "b2": "2"}
    entries = {(r, c): cell(None, 90 + i + j) for i, r in enumerate(rows) for j, c in enumerate(columns)}
    entries["sn_1", "b2"] = cell(None, missing=1)
    figure = heat_maps(results(rows, columns, entries), panels={"BN": ["bn_0", "bn_1"], "SN": ["sn_0", "sn_1"]})
    bn, sn = figure.axes[:2]
    np.testing.assert_allclose(np.asarray(bn.images[0].get_array().data, float), [[90, 91], [91, 92]])
    assert [text.get_text() for text in sn.texts] == ["92.0", "93.0", "93.0", ""]  # nothing where nothing was run
    assert [tick.get_text() for tick in bn.get_yticklabels()] == ["light 0", "light 1"]
    assert [tick.get_text() for tick in sn.get_xticklabels()] == ["32", "2"]
    assert bn.images[0].norm.vmin == sn.images[0].norm.vmin and bn.images[0].norm.vmax == sn.images[0].norm.vmax


def test_accuracy_along_rows():
    """As HN, Fig. 4: batch sizes go along the axis, normalizers are lines."""
    sizes, norms = {"b4": "4", "b8": "8", "b16": "16"}, {"sn": "SN", "hn": "HN"}
    entries = {(b, n): cell(90 + i + j, 80 + i, 82 + i) for i, b in enumerate(sizes) for j, n in enumerate(norms)}
    figure = accuracy(results(sizes, norms, entries), along="rows", xlabel="batch size")
    measured, paper = figure.axes
    lines = [line for line in measured.lines if len(line.get_xdata()) == 3]
    assert next(list(line.get_ydata()) for line in lines if to_hex(line.get_color()) == "#56b4e9") == [81, 82, 83]
    assert [list(c.lines[0].get_ydata()) for c in paper.containers] == [[90, 91, 92], [91, 92, 93]]
    assert [tick.get_text() for tick in paper.get_xticklabels()] == list(sizes.values())
    with pytest.raises(UserError, match="groups: 'b5' does not exist"):
        accuracy(results(sizes, norms, entries), along="rows", groups={"": ["b5"]})


def test_points_stand_near_their_place_and_settings_of_no_order_are_not_joined():
    """However many lines there are; Table 2 has no line from (8,1) to (1,8)."""
    rows = {f"r{i}": f"R{i}" for i in range(9)}
    entries = {(r, c): cell(None, 90.0) for r in rows for c in ("a", "b")}
    (measured, _) = accuracy(results(rows, {"a": "A", "b": "B"}, entries)).axes
    places = [x for container in measured.containers for x in container.lines[0].get_xdata()]
    assert all(abs(x - round(x)) < 0.2 for x in places) and len(set(places)) == 18
    table = load_table("table2")
    whole = {(r, c): cell(None, 90.0) for r in table.rows for c in table.columns}
    found = dataclasses.replace(
        results({n: r.label for n, r in table.rows.items()}, {n: c.label for n, c in table.columns.items()}, whole)
    )
    groups = table.figures["accuracy"]["groups"]
    axis = accuracy(found, groups=groups).axes[0]
    assert sorted(len(container.lines[0].get_xdata()) for container in axis.containers) == sorted([5, 2, 1, 1] * 3)


def test_ratios_need_a_row_of_the_table():
    with pytest.raises(UserError, match="row 'sm' does not exist; did you mean 'sn'"):
        ratios(results({"sn": "SN"}, {"a": "A"}, {}), row="sm")
