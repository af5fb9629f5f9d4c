"""Plot: pictures hold what was given, no state remains, bad input is refused."""
import ast
from base64 import b64decode
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
import json
import math
import re
import shutil
import subprocess

from hypothesis import given, settings, strategies as st
import matplotlib
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest
import torch

from bookmaker import ROOT
from forms import figure as figure_of, source
from rbmdiff.foundations import plot
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.plot import (
    COLORS,
    CYCLE,
    Animation,
    Table,
    band,
    color_distance,
    contrast,
    dichromat,
    figure,
    heat_map,
    image_grid,
    learning_curves,
    mosaic,
    symmetric,
    trajectories,
    vector_field,
    weight_filters,
)


def png(fig):
    return matplotlib.image.imread(BytesIO(b64decode(fig._repr_mimebundle_()[0]["image/png"])))


def every_kind():
    x, g = torch.linspace(0, 1, 5), torch.Generator().manual_seed(0)
    return [image_grid(torch.rand(5, 9, generator=g), title="a"),
            weight_filters(torch.randn(9, 5, generator=g), title="a"),
            vector_field(lambda x: -x, (-1, 1), (-1, 1), log_density=lambda x: -(x**2).sum(-1),
                         title="a"),
            trajectories(torch.rand(5, 3, 2, generator=g), title="a"),
            learning_curves({"a": (x, x), "b": (x, x, x)}, title="a")]


def test_no_state_is_left_behind():
    from matplotlib import _pylab_helpers
    before = dict(matplotlib.rcParams)
    for fig in every_kind():
        assert isinstance(fig, Figure)
        image = png(fig)
        width, height = fig.get_size_inches() * fig.dpi
        assert abs(image.shape[0] - height) <= 1 and abs(image.shape[1] - width) <= 1
        assert image[..., :3].std() > 0.01
        # white and opaque, in dark mode too
        assert (image[0, 0] == 1).all()
    assert dict(matplotlib.rcParams) == before and not _pylab_helpers.Gcf.figs


def test_every_title_has_the_style():
    for fig in every_kind(): assert fig.axes[0].title.get_fontsize() == 9.5


def test_draws_into_given_axes():
    fig, axes = figure(2)
    assert image_grid(torch.rand(4, 4), ax=axes[0]) is fig
    assert learning_curves({"a": ([0, 1], [0, 1])}, ax=axes[1]) is fig


def test_figure_takes_subplot_keywords():
    _, ax = figure(2, 3, sharex=True)
    assert ax.shape == (3, 2) and figure(1, 2)[1].shape == (2,)
    assert figure(subplot_kw={"projection": "3d"})[1].name == "3d"
    lines = [ax[0, 0].plot([0, 1])[0].get_color() for _ in CYCLE]
    assert lines == list(CYCLE)


def test_palette_is_okabe_ito_and_legible():
    assert len(COLORS) == 8 and set(CYCLE) < set(COLORS.values()) and COLORS["yellow"] not in CYCLE
    assert contrast("#FFFFFF", "#000000") == pytest.approx(21)
    assert contrast("#777777") == pytest.approx(4.478, abs=1e-3)
    assert all(contrast(color) > 3 for color in CYCLE[:5])
    for kind in ("none", "protan", "deutan", "tritan"):
        assert min(color_distance(a, b,
                                  kind) for a in COLORS.values() for b in COLORS.values() if a != b) > 15


@pytest.mark.parametrize("hexcode, lab",
                         [("#00FF00", (87.73, -86.18, 83.18)), ("#0000FF", (32.30, 79.19, -107.86)),
                          ("#808080", (53.59, 0, 0))])
def test_cielab_against_tabulated_values(hexcode, lab):
    assert color_distance(hexcode, "#000000") == pytest.approx(np.linalg.norm(lab), abs=0.05)
    assert color_distance(hexcode,
                          "#FFFFFF") == pytest.approx(np.linalg.norm(np.subtract(lab, (100, 0, 0))),
                                                      abs=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_mosaic_places_every_pixel(n, h, w, columns):
    x = torch.arange(n * h * w, dtype=torch.float64)
    canvas = mosaic(x.reshape(n, h * w), (h, w), columns)
    for k in range(n):
        top, left = (h + 1) * (k // columns), (w + 1) * (k % columns)
        assert np.array_equal(canvas[top: top + h, left: left + w].ravel(),
                              np.arange(k * h * w, (k + 1) * h * w))
    assert np.isfinite(canvas).sum() == n * h * w


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_symmetric_scale(w):
    u, m = symmetric(np.array(w))
    assert (u >= 0).all() and (u <= 1).all()
    assert np.array_equal(np.sign(u - 0.5), np.sign(np.array(w) / m / 2 + 0.5 - 0.5))


@pytest.mark.parametrize("n, d", [(100, 571), (1, 5), (100, 20136), (3, 1)])
def test_data_that_are_no_image_are_readable(n, d):
    fig = heat_map(torch.rand(n, d), "value")
    ax, = (ax for ax in fig.axes if ax.images)
    box = ax.get_window_extent()
    file = BytesIO()
    fig.savefig(file)
    assert box.height > 200 and box.width > 500 and len(file.getvalue()) > 1000
    assert np.array_equal(ax.images[0].get_array().shape, (n, d))
    image_grid(torch.rand(n, d), (1, d)).savefig(BytesIO())             # thin, but no empty image


def test_takes_parameters_with_gradient():
    W = torch.nn.Parameter(torch.randn(16, 3))
    assert weight_filters(W).axes and image_grid(W.T).axes


@pytest.mark.parametrize("call, message", [
    pytest.param(lambda: image_grid(torch.zeros(4, 7)), "shape must have 7 pixels", id="not square"),
    pytest.param(lambda: image_grid(torch.zeros(4, 8), shape=(3, 3)),
                 "shape must have 8 pixels, got 3 x 3", id="shape"),
    pytest.param(lambda: image_grid(torch.zeros(8)), r"\[N, D\] or \[N, h, w\]", id="rank"),
    pytest.param(lambda: image_grid(torch.zeros(0, 4)), "must not be empty", id="empty"),
    pytest.param(lambda: heat_map(torch.zeros(4)), r"x must have shape \[N, D\]", id="row"),
    pytest.param(lambda: image_grid(torch.zeros(2, 4), columns=0), "columns must be at least 1",
                 id="columns"),
    pytest.param(lambda: weight_filters(torch.ones(4, 2), limit=0.5), "limit must be at least 1",
                 id="limit"),
    pytest.param(lambda: weight_filters(torch.ones(4, 2), limit=math.nan), "limit", id="nan limit"),
    pytest.param(lambda: vector_field(lambda x: x[:, 0], (0, 1), (0, 1)), r"\[B, 2\]", id="field"),
    pytest.param(lambda: vector_field(lambda x: x, (0, 1), (0, 1), n=1), "n must be at least 2",
                 id="one arrow"),
    pytest.param(lambda: trajectories(torch.zeros(5, 2)), r"\[T, n, 2\]", id="paths"),
    pytest.param(lambda: band([0.0], [-1.0]), "stderr", id="negative error"),
    pytest.param(lambda: dichromat("#000000", "cat"), "kind must be one of", id="kind")])
def test_bad_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_vector_field_arrows_are_the_field():
    fig = vector_field(lambda x: torch.stack([x[:, 1], -x[:, 0]], 1), (-1, 1), (-2, 2), n=5)
    quiver = next(c for c in fig.axes[0].collections if isinstance(c, matplotlib.quiver.Quiver))
    assert np.allclose(quiver.U, quiver.Y) and np.allclose(quiver.V, -quiver.X) and len(quiver.U) == 25


def test_contours_are_not_transposed():
    seen = {}

    class Spy:
        def contour(self, x, y, z, *args, **kwargs): seen.update(x=x, y=y, z=z)

    plot._contours(Spy(), lambda p: -(p[:, 0] - 1) ** 2 - 10 * (p[:, 1] + 1) ** 2, (-2, 2), (-2, 2))
    row, column = np.unravel_index(seen["z"].argmax(), (80, 80))
    assert abs(seen["x"][column] - 1) < 0.05 and abs(seen["y"][row] + 1) < 0.05


def test_learning_curve_band():
    x, y, s = np.arange(4.0), np.array([1.0, 2, 3, 5]), np.array([0.1, 0.2, 0.1, 0.3])
    area = learning_curves({"a": (x, torch.tensor(y), s)}).axes[0].collections[0].get_paths()[0].vertices
    for k in range(4):
        edge = area[area[:, 0] == x[k], 1]
        assert edge.min() == pytest.approx(y[k] - 2 * s[k])
        assert edge.max() == pytest.approx(y[k] + 2 * s[k])


# Tables

def some_table():
    return Table(("what", "value", "<b>"), [["a & b", Estimate(1.5, 0.25, 9), 1 / 3],
                                            ["c", None, torch.tensor(2)]], digits=3)


def test_a_table_is_text_markdown_and_html():
    text = repr(some_table()).split("\n")
    assert text[0].split() == ["what", "value", "<b>"] and text[2].split()[-1] == "0.333"
    assert len({len(line) for line in text}) == 1 and "1.50 ± 0.25" in text[2]
    assert some_table()._repr_markdown_().split("\n")[1].count("|") == 4
    html = some_table()._repr_html_()
    assert "a &amp; b" in html and "&lt;b&gt;" in html and "<b>" not in html
    assert 'tabindex="0"' in html and html.count("text-align: right") == 6 and html.count("<tr>") == 3


@pytest.mark.parametrize("rows", ([], [[1]], [[1, 2], [1, 2, 3]]))
def test_rows_of_another_length_are_refused(rows):
    with pytest.raises(ValueError, match="^rows must have 2 entries each"): Table(("a", "b"), rows)


def test_labels_stand_beside_their_images():
    fig = image_grid(torch.rand(6, 2, 4), columns=3, row_labels=["data", "model"],
                     column_labels=["1", "2", "3"])
    ax, (height, width) = fig.axes[0], fig.axes[0].images[0].get_array().shape
    assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "model"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3"]
    # a frame of one pixel, images of 2 by 4 pixels, one apart
    assert (height, width) == (7, 16)
    assert list(ax.get_yticks()) == [1.5, 4.5] and list(ax.get_xticks()) == [2.5, 7.5, 12.5]


@pytest.mark.parametrize("name", ["row_labels", "column_labels"])
def test_every_row_or_none_has_a_label(name):
    with pytest.raises(ValueError, match=f"^{name} must have 2 entries, got 1"):
        image_grid(torch.rand(4, 9), columns=2, **{name: ["data"]})


# Motion

def marks(places):
    """A figure with a line at each of the places, one after the other."""
    fig, ax = figure(width=2, height=1)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    line = ax.axvline(0, color=CYCLE[0], linewidth=3)
    for x in places:
        line.set_xdata([x, x])
        yield fig


def moving(alt="A line that moves right.", places=(0.1, 0.5, 0.9), **kwargs):
    return Animation(marks(places), image_grid(torch.rand(3, 4), columns=3), alt, **kwargs)


def test_frames_are_kept_in_order_and_the_last_one_is_held():
    shown, line = Image.open(BytesIO(moving(milliseconds=80).moving)), []
    assert shown.format == "WEBP" and shown.n_frames == 3 and shown.info["loop"] == 0
    times = []
    for k in range(3):
        shown.seek(k)
        shown.load()
        times.append(shown.info["duration"])
        blue = np.abs(np.asarray(shown.convert("RGB")).astype(int) - (0, 114, 178)).sum(2) < 30
        line.append(blue.sum(0).argmax() / shown.width)
    assert times == [80, 80, 800] and line[0] < 0.35 < line[1] < 0.75 < line[2]


def test_axes_do_not_jump():
    corner = []
    shown = Image.open(BytesIO(moving(places=(0.1, 0.1, 0.1, 0.2)).moving))
    for k in range(shown.n_frames):
        shown.seek(k)
        corner.append(np.asarray(shown.convert("RGB")))
    assert all(np.array_equal(corner[0], other) for other in corner[1:-1])
    assert not np.array_equal(corner[0], corner[-1])


def test_motion_has_a_still_and_words_and_needs_no_network():
    data, size = moving('A "line" & more')._repr_mimebundle_()
    html = data["text/html"]
    assert html.count('alt="A &quot;line&quot; &amp; more"') == 2 and not re.search("https?:", html)
    assert re.findall(r'src="(data:image/\w+)', html) == ["data:image/webp", "data:image/png"]
    assert Image.open(BytesIO(b64decode(data["image/png"]))).format == "PNG"
    assert data["image/png"] in html
    assert size["image/png"]["width"] == 624 and re.findall(r'width="(\d+)"', html) == ["192", "624"]


def test_the_build_asks_for_caption_and_alt_of_what_moves(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book")
    spec = spec_from_file_location("build_of_the_book", ROOT / "book/build.py")
    build = module_from_spec(spec)
    spec.loader.exec_module(build)
    output = {"output_type": "execute_result", "data": moving()._repr_mimebundle_()[0]}

    def problems(**options):
        cell = {"id": "a", "metadata": {"mystnb": options}, "outputs": [output]}
        return build.output_problems("x", {"cells": [cell], "error": ""})

    caption, alt = {"name": "fig-x", "caption": "c"}, {"alt": "a"}
    assert problems(figure=caption, image=alt) == []
    assert len(problems()) == 2 and len(problems(figure=caption)) == 1 == len(problems(image=alt))


def spoken(text):
    """The alt texts that the code of a cell gives to animations."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)
             and getattr(node.func, "id", "") == "Animation"]
    return [" ".join(ast.literal_eval(node.args[2]).split()) for node in calls]


def test_an_animation_says_the_same_words_as_its_figure():
    found = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text("utf8"))["cells"]
        for cell in (c for c in cells if c["cell_type"] == "code" and "= Animation(" in source(c)):
            found[path.stem] = (spoken(source(cell)), [figure_of(cell)[2]])
    assert {"plot", "score"} <= set(found)
    for name, (said, alt) in found.items(): assert said == alt, name


@pytest.mark.parametrize("call, message", [
    pytest.param(lambda: moving(places=(0.1,)), "^frames must be two figures or more of one size, got 1",
                 id="one frame"),
    pytest.param(lambda: Animation([figure()[0], figure(height=2)[0]], figure()[0], "a"),
                 "of one size, got 2 of sizes", id="sizes"),
    pytest.param(lambda: moving(alt=" "), "^alt must describe", id="no words"),
    pytest.param(lambda: moving(milliseconds=0), "milliseconds must be at least 1", id="time"),
    pytest.param(lambda: moving(most=100), "^frames must fit into 100 bytes, got", id="size")])
def test_what_cannot_move_is_refused(call, message):
    with pytest.raises(ValueError, match=message): call()


SHOWN = """<script>document.title = ["moving", "still"].filter(name =>
getComputedStyle(document.querySelector("." + name)).display != "none").join(" ")</script>"""


@pytest.mark.parametrize("flags, box, shown", [((), "", "moving"),
                                               (("--force-prefers-reduced-motion",), "", "still"),
                                               ((), "checked", "still")],
                         ids=["as it is", "less motion", "held"])
def test_a_browser_shows_the_still_where_it_must(tmp_path, flags, box, shown):
    chromium = shutil.which("chromium")
    if chromium is None: pytest.skip("no Chromium")
    html = moving()._repr_mimebundle_()[0]["text/html"].replace('"checkbox"', f'"checkbox" {box}')
    (tmp_path / "page.html").write_text(html + SHOWN)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", *flags, "--dump-dom",
               f"--user-data-dir={tmp_path}", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert f"<title>{shown}</title>" in dom
