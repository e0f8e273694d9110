"""The study's networks under the roof of each machine that timed them."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from profiling.figure_style import WIDTH, Look, looks
from profiling.roof_panel import Height, UnderRoof, draw_roof, heights, under_roof
from profiling.roofline import Roof
from profiling.study.data import Comparison
from profiling.study.figure_facts import Heading, heading, timed_comparisons
from profiling.study.figure_sheet import Sheet, legend_height, sheets
from profiling.tables import efficiency_tables, place

PANEL, AXIS = 3.9, 0.48  # inches


@dataclass(frozen=True, kw_only=True, slots=True)
class RoofPanel:
    """One comparison on one machine."""

    heading: Heading
    under: UnderRoof


def roof_data(comparisons: Sequence[Comparison], roofs: Mapping[str, Roof]) -> list[RoofPanel]:
    """A panel for each comparison and machine of which the roof is known."""
    panels = []
    for comparison in timed_comparisons(comparisons):
        records = [r for arm in comparison.arms for t in arm.trials for r in t.measurements]
        tables = efficiency_tables(records, roofs)
        for table in sorted(tables, key=lambda table: place(table.environment)):
            points = _over_seeds(heights(table))
            if points and table.roof is not None:
                words = heading(comparison, comparisons, timed_on=table.environment)
                precisions = {r.precision for row in table.rows for r in row.by_batch.values()}
                under = under_roof(table.roof, points, precisions)
                panels.append(RoofPanel(heading=words, under=under))
    return panels


def _over_seeds(points: Iterable[Height]) -> list[Height]:
    """One of each network and series: the mean of what its seeds reached."""
    found: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for point in points:
        found[point.model, point.series, point.intensity].append(point.flops)
    return [
        Height(model, intensity, statistics.fmean(flops), series)
        for (model, series, intensity), flops in sorted(found.items())
    ]


def draw_roofs(panels: Sequence[RoofPanel]) -> Iterator[Figure]:
    """The panels on sheets."""
    styles: dict[str, Look] = looks(h.series for panel in panels for h in panel.under.heights)

    def height(panel: RoofPanel) -> float:
        return PANEL + AXIS + legend_height(_keys(panel.under), WIDTH - 0.8)

    def draw(sheet: Sheet, panel: RoofPanel, top: float) -> None:
        axes = sheet.axes(0.6, top, WIDTH - 0.75, PANEL)
        handles = draw_roof(axes, panel.under, styles)
        sheet.legend(handles, 0.6, top + PANEL + AXIS - 0.04, WIDTH - 0.8)

    return sheets(panels, height, draw)


def _keys(under: UnderRoof) -> list[str]:
    return [line.name for line in under.lines] + sorted({h.series for h in under.heights})
