"""The sheets of all networks as one page: tables by machine, goals, and what could not be made."""

from collections.abc import Callable, Iterator, Sequence

from profiling.record import OK
from profiling.samples import Ratio
from profiling.tables import markdown_table, mebibytes, number, percent, place
from zoo.environment import Environment

from .eager_nchw import BACKEND as EAGER_NCHW
from .sheet import ALL_BITS, Entry, Sheet, by_machine

EAGER, COMPILE = "eager", "compile"
BASELINES = (EAGER_NCHW, EAGER)
TORCH = (*BASELINES, COMPILE)
INT8 = "int8"
KEEPS = 0.005  # of top-1 in [0, 1]; an artifact that loses less keeps its accuracy
FLOAT_GOALS = (("resnet_20", 1, 3.5), ("resnet_20", 256, 1.7))  # network, batch, times as fast
INT8_GOAL = ("resnet_18", 256, 2.0)
LABELS = {EAGER_NCHW: "eager, NCHW", EAGER: "eager, channels-last"}
LEFT_COLUMNS = 4

INTRO = f"""\
# Artifacts on one CPU

Written by `make artifacts` from the records beside it; do not edit it.

Every artifact of a network, and torch itself, took turns in rounds of one run. A time is the median
of the rounds' medians of single calls, copies excluded; "times as fast" is the median over the
rounds of the ratio to the faster of eager NCHW and eager channels-last at that batch size, with its
95% interval from six rounds on. On one thread it is processor time.

Top-1 is that of this very file on the whole test split. Most networks were trained briefly, for
this alone: "images" is how many passed through the training, with repetition, where the record
tells. The share of images whose class is eager's, and the largest error of a logit, are of 1,000
test images that no artifact was made with. An artifact keeps its accuracy where it loses less than
{100 * KEEPS:.1f} points of eager's. Weights of int8 have 7 bits, whose sums no CPU clips, or are
said to have 8.
"""


def page(sheets: Sequence[Sheet]) -> str:
    """The whole text."""
    parts = [INTRO]
    for together in by_machine(sheets, lambda sheet: sheet.environment):
        parts.append(_heading(together))
        parts += [f"- {verdict}\n" for verdict in verdicts(together)]
        for threads in _each(together, lambda timing: timing.threads):
            parts.append(_table(together, threads))
        lacking = list(_lacking(together))
        if lacking:
            parts.append("\nNot measured:\n\n" + "".join(f"- {line}\n" for line in lacking))
    return "".join(parts)


def verdicts(sheets: Sequence[Sheet]) -> Iterator[str]:
    """Which artifact is best, held against the goals; on one thread."""
    by_model = {sheet.model: sheet for sheet in sheets}
    for model, batch, goal in FLOAT_GOALS:
        if model in by_model:
            yield from _float_verdict(by_model[model], batch, goal)
    model, batch, goal = INT8_GOAL
    if model in by_model:
        yield from _int8_verdict(by_model[model], batch, goal)
    for sheet in sheets:
        for batch in _each([sheet], lambda timing: timing.batch):
            yield from _accurate_verdict(sheet, batch)


def baseline(sheet: Sheet, batch: int, threads: int) -> Entry | None:
    """The faster of eager in both memory formats; None where neither was measured."""
    found = [
        (timing.middle_ms(wall=threads > 1), number, entry)
        for number, entry in enumerate(sheet.entries)
        if entry.backend in BASELINES and (timing := entry.timing(batch, threads)) is not None
    ]
    return min(found)[2] if found else None


def fastest(sheet: Sheet, batch: int, is_wanted: Callable[[Entry], bool]) -> Entry | None:
    """Of the entries measured on one thread, that which is most times as fast as the baseline."""
    base = baseline(sheet, batch, 1)
    if base is None:
        return None
    found = [
        (_ratio(entry, base, batch, 1).value, -number, entry)
        for number, entry in enumerate(sheet.entries)
        if is_wanted(entry) and entry.timing(batch, 1) is not None
    ]
    return max(found)[2] if found else None


def keeps_accuracy(sheet: Sheet, entry: Entry) -> bool | None:
    """Whether it loses less than KEEPS of eager's top-1; None where that is not known."""
    eager = next((one for one in sheet.entries if one.backend == EAGER), None)
    if eager is None or eager.top1 is None or entry.top1 is None:
        return None
    return eager.top1 - entry.top1 < KEEPS


def _float_verdict(sheet: Sheet, batch: int, goal: float) -> Iterator[str]:
    best = fastest(sheet, batch, lambda entry: _is_float(sheet, entry))
    base = baseline(sheet, batch, 1)
    if best is not None and base is not None:
        ratio = _ratio(best, base, batch, 1)
        yield (
            f"{sheet.model}, batch {batch}: the best float artifact is {_label(best)}, "
            f"{_times(ratio)} times as fast as {_label(base)}; goal {goal:g}: "
            f"{_reached(ratio, goal)}."
        )


def _int8_verdict(sheet: Sheet, batch: int, goal: float) -> Iterator[str]:
    whole = fastest(sheet, batch, lambda entry: entry.precision == INT8)
    base = fastest(sheet, batch, lambda entry: _is_float(sheet, entry))
    if whole is not None and base is not None:
        ratio = _ratio(whole, base, batch, 1)
        yield (
            f"{sheet.model}, batch {batch}: the best int8 artifact is {_label(whole)}, "
            f"{_times(ratio)} times as fast as the best float one, {_label(base)}; goal {goal:g}: "
            f"{_reached(ratio, goal)}."
        )


def _accurate_verdict(sheet: Sheet, batch: int) -> Iterator[str]:
    def is_wanted(entry: Entry) -> bool:
        return entry.backend not in TORCH and keeps_accuracy(sheet, entry) is True

    best, base = fastest(sheet, batch, is_wanted), baseline(sheet, batch, 1)
    if best is not None and base is not None:
        eager = next(entry for entry in sheet.entries if entry.backend == EAGER)
        yield (
            f"{sheet.model}, batch {batch}: the fastest artifact that keeps its accuracy is "
            f"{_label(best)}, {_times(_ratio(best, base, batch, 1))} times as fast as "
            f"{_label(base)}, with top-1 {percent(best.top1)} % where eager has "
            f"{percent(eager.top1)} %."
        )


def _is_float(sheet: Sheet, entry: Entry) -> bool:
    """Whether it is an artifact that computes with floats, and is not known to lose accuracy."""
    is_artifact = entry.backend not in TORCH and entry.precision != INT8
    return is_artifact and keeps_accuracy(sheet, entry) is not False


def _ratio(entry: Entry, base: Entry, batch: int, threads: int) -> Ratio:
    ours, theirs = entry.timing(batch, threads), base.timing(batch, threads)
    assert ours is not None
    assert theirs is not None
    return ours.times_as_fast(theirs, wall=threads > 1)


def _table(sheets: Sequence[Sheet], threads: int) -> str:
    batches = _each(sheets, lambda timing: timing.batch)
    clock = "CPU" if threads == 1 else "wall"
    header = ["Network", "Images", "Backend", "Precision"]
    header += ["Top-1 %", "Same class %", "Largest error", "File MiB"]
    for batch in batches:
        header += [f"b{batch} {clock} ms", f"b{batch} times as fast"]
    lines = [header]
    for sheet in sheets:
        for entry in sheet.entries:
            times = _time_cells(sheet, entry, batches, threads)
            if any(times):
                lines.append([*_fact_cells(sheet, entry), *times])
    few = "1 thread" if threads == 1 else f"{threads} threads, for the record: no goal is set here"
    return f"\nOn {few}:\n\n{markdown_table(lines, left=LEFT_COLUMNS)}"


def _fact_cells(sheet: Sheet, entry: Entry) -> list[str]:
    error = entry.max_abs_error
    return [
        *(sheet.model, _images(sheet), entry.backend, _precision(entry)),
        *(percent(entry.top1), percent(entry.agreement, 1)),
        *("" if error is None else f"{error:.1e}", mebibytes(entry.file_bytes)),
    ]


def _images(sheet: Sheet) -> str:
    return "" if sheet.trained_images is None else f"{sheet.trained_images:,}"


def _time_cells(sheet: Sheet, entry: Entry, batches: Sequence[int], threads: int) -> list[str]:
    cells = []
    for batch in batches:
        timing, base = entry.timing(batch, threads), baseline(sheet, batch, threads)
        middle = None if timing is None else timing.middle_ms(wall=threads > 1)
        is_known = timing is not None and base is not None
        ratio = _times(_ratio(entry, base, batch, threads)) if is_known and base else ""
        cells += [number(middle), ratio]
    return cells


def _lacking(sheets: Sequence[Sheet]) -> Iterator[str]:
    for sheet in sheets:
        for entry in sheet.entries:
            name = f"{sheet.model}, {_label(entry)}"
            if entry.reason is not None:
                yield f"{name}: {entry.reason}"
            cases: dict[str | None, list[str]] = {}
            for timing in entry.timings:
                if timing.status != OK:
                    few = f"{timing.threads} thread{'s' if timing.threads > 1 else ''}"
                    cases.setdefault(timing.reason, []).append(f"batch {timing.batch} on {few}")
            for reason, those in cases.items():
                yield f"{name}, {', '.join(those)}: {reason}"


def _heading(sheets: Sequence[Sheet]) -> str:
    commits = dict.fromkeys(sheet.commit or "no commit" for sheet in sheets)
    budgets = dict.fromkeys(f"{sheet.budget_s:g} s" for sheet in sheets)
    return (
        f"\n## {place(_environment(sheets[0]))}, {sheets[0].dataset}\n\n"
        f"Commit {', '.join(commits)}; {', '.join(budgets)} for each backend and batch size.\n\n"
    )


def _environment(sheet: Sheet) -> Environment:
    return Environment.from_json(dict(sheet.environment))


def _each(sheets: Sequence[Sheet], of: Callable[..., int]) -> list[int]:
    """Every value that any timing has, ascending."""
    entries = [entry for sheet in sheets for entry in sheet.entries]
    return sorted({of(timing) for entry in entries for timing in entry.timings})


def _label(entry: Entry) -> str:
    return LABELS.get(entry.backend, f"{entry.backend} {entry.precision}")


def _precision(entry: Entry) -> str:
    if entry.precision == INT8 and entry.weight_bits == ALL_BITS:
        return f"{INT8}, {ALL_BITS}-bit weights"
    return entry.precision


def _times(ratio: Ratio) -> str:
    known = ratio.interval
    beside = "" if known is None else f" ({known[0]:.2f} to {known[1]:.2f})"
    return f"{ratio.value:.2f}{beside}"


def _reached(ratio: Ratio, goal: float) -> str:
    return "reached" if ratio.value >= goal else "not reached"
