"""The look of every figure, and its file: the same content gives the same bytes.

Sizes are those of print: a figure is as wide as the text of an A4 page, and no letter is below
7 pt. Colour never stands alone: markers and line styles say the same once more.
"""

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.0  # inches
SMALL, NORMAL, LARGE = 7.0, 7.5, 9.0  # pt
DPI = 160  # of the PNG
# Okabe and Ito's palette, told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
FRONT, TEXT, QUIET, GRID, FILL = "#888888", "#333333", "#666666", "#E5E5E5", "#BFD7E8"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cifar-zoo",  # ids of an SVG are random without one
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": NORMAL,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.titlesize": LARGE,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
}


class Look(NamedTuple):
    """How one series is drawn, in every panel of every figure."""

    colour: str
    marker: str
    line: Any


def looks(series: Iterable[str]) -> dict[str, Look]:
    """A look for each series; the eighth differs from the first by its marker alone."""
    names = sorted(set(series))
    kinds = zip(cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False)
    return {name: Look(*kind) for name, kind in zip(names, kinds, strict=False)}


@contextmanager
def drawing() -> Iterator[None]:
    """Our style within, and whatever the caller had set afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the tables have it.
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        matplotlib.rcdefaults()  # a user's own settings would make another figure
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(height: float, *, layout: Literal["constrained"] | None = None) -> Figure:
    """An empty figure of our width; `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def files(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and SVG, without a date or a version inside."""
    return {"png": _png(figure), "svg": _svg(figure)}


def _png(figure: Figure) -> bytes:
    """In 256 colours, which nobody tells from all of them and which take a third of the bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=DPI)
    pixels, width = file.getvalue(), int(figure.get_figwidth() * DPI)
    size = width, len(pixels) // (4 * width)
    image = Image.frombytes("RGBA", size, pixels).convert("RGB")
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours = palette.getpalette() or []
    corner = palette.tobytes()[0]  # an index: white is merged with its neighbours otherwise
    colours[3 * corner : 3 * corner + 3] = (255, 255, 255)
    palette.putpalette(colours)
    file = io.BytesIO()
    palette.save(file, "PNG", dpi=(DPI, DPI))
    return file.getvalue()


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def grid(axes: "Axes", which: Literal["both", "x", "y"] = "both") -> None:
    """Quiet lines behind everything else."""
    axes.grid(axis=which, color=GRID, linewidth=0.6)


def log_scale(axes: "Axes", which: Literal["x", "y"], low: float, high: float) -> None:
    """A logarithmic axis from `low` to `high` whose ticks are plain numbers, few enough to read."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    place = axes.get_position()
    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        size = place.width * figure.get_figwidth()
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        size = place.height * figure.get_figheight()
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = math.log10(high / low)
    per_decade = size / decades / (0.45 if which == "x" else 0.22)  # ticks that there is room for
    subs = (1.0, 2.0, 5.0) if per_decade >= 3 else (1.0, 3.0) if per_decade >= 2 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=50))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_tick(value)))
    axis.set_minor_locator(NullLocator())  # its ticks would not be seen, but take time


def plain_tick(value: float) -> str:
    """A tick without an exponent; thousands as k and millions as M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


def around(values: Sequence[float], *, share: float, least: float) -> tuple[float, float]:
    """Limits with room for marks and names at either end."""
    margin = max(least, share * (max(values) - min(values)))
    return min(values) - margin, max(values) + margin


def text_width(text: str, size: float) -> float:
    """Width of a line of text in pt."""
    font = FontProperties(family="DejaVu Sans", size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
