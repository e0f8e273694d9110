"""What models cost by counting: one line a model and file, nothing is timed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from profiling.footprint import intensity
from profiling.tables import mebibytes, millions, number
from zoo.text import columns

if TYPE_CHECKING:
    from profiling.subject import Subject

LEFT_COLUMNS = 4


def cost_rows(subjects: Sequence["Subject"], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Plain values of each subject; None where something cannot be counted."""
    rows = []
    for one in subjects:
        known = one.footprint
        size = one.file_bytes if known is None or one.file_bytes else known.state_bytes
        rows.append(
            {
                "model": one.model,
                "run": None if one.source is None else one.source.run,
                "backend": one.backend,
                "precision": one.precision,
                "image_shape": list(one.image_shape),
                "params": one.params,
                "buffers": None if known is None else known.buffers,
                "size_bytes": size,
                "macs": one.macs,
                "flops": None if one.macs is None else 2 * one.macs,
                "norm_flops": None if known is None else known.norm_flops,
                "batches": [
                    {
                        "batch": batch,
                        "activation_bytes": None
                        if known is None
                        else known.activation_bytes(batch),
                        "flops_per_byte": None
                        if known is None or one.macs is None
                        else intensity(known, one.macs, batch, one.precision),
                    }
                    for batch in batches
                ],
            }
        )
    return rows


def cost_text(subjects: Sequence["Subject"], batches: Sequence[int]) -> str:
    """The same as a table; a cell is empty where something cannot be counted."""
    header = ["model", "run", "backend", "precision", "params", "buffers", "size MiB", "MACs M"]
    header += ["FLOPs M", "norm FLOPs M"]
    header += [f"b{batch} {what}" for batch in batches for what in ("act. MiB", "FLOPs/byte")]
    lines = [header]
    for row in cost_rows(subjects, batches):
        line = [row["model"], row["run"] or "", row["backend"], row["precision"]]
        line += ["" if row[key] is None else f"{row[key]:,}" for key in ("params", "buffers")]
        line.append(mebibytes(row["size_bytes"]))
        line += [millions(row[key]) for key in ("macs", "flops", "norm_flops")]
        for one in row["batches"]:
            line += [mebibytes(one["activation_bytes"]), number(one["flops_per_byte"])]
        lines.append(line)
    named = [
        column for column in range(len(header)) if column >= LEFT_COLUMNS or _any(lines, column)
    ]
    chosen = [[line[column] for column in named] for line in lines]
    left = sum(column < LEFT_COLUMNS for column in named)
    text = columns(chosen, right=range(left, len(named)))
    return "".join(f"{line}\n" for line in text) + NOTE


def _any(lines: Sequence[Sequence[str]], column: int) -> bool:
    return any(line[column] for line in lines[1:])


NOTE = (
    "MACs and FLOPs: convolutions and matrix products of one image; those of norms stand apart. "
    "act. MiB: the most that is live at once in float32, weights excluded. FLOPs/byte: by what "
    "convolutions and matrix products read and write once. Stages: zoo-list MODEL.\n"
)
