"""Whether channels-last makes a network train faster, network by network: make memory-format.

Forward and backward pass in both formats take turns in one process, in the precision that zoo-train
takes on this chip. On a CPU one thread and its processor time, which other programs disturb little;
on a GPU time on its own clock.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import torch
import torch.nn.functional as F

from profiling.samples import Ratio, ratio_of_rounds
from profiling.tables import markdown_table
from training.precision import DTYPES, keep_depthwise_in_fp32, resolve_precision
from zoo import command
from zoo.environment import capture
from zoo.errors import RecordError
from zoo.files import write_atomic
from zoo.models import MODELS, create_model, model_spec

COMMAND = "memory_format"
FOLDER = Path(__file__).parents[2] / "bench_results" / "memory_format"
RECORDS, TABLE = "records.jsonl", "README.md"
WORK = {"cpu": 4e9, "cuda": 2e11}  # multiply-accumulates of a forward pass, which set the batch
BATCHES = {"cpu": (8, 32), "cuda": (64, 1024)}  # images: the least, and the most
TURNS = {"cpu": 9, "cuda": 50}

INTRO = """\
# Memory format of training, by network

Written by `make memory-format` from `records.jsonl`; do not edit it.

Time of a forward and a backward pass with images and weights in torch's contiguous format (NCHW),
divided by that in channels-last: the median of the ratios of passes that followed one another, and
its 95% interval. Above 1 channels-last is faster; it is what `zoo-train` uses unless
`--memory-format contiguous` says otherwise. Where the interval holds 1 no difference is shown; of
networks without any, no more than one in 40 would seem faster, and as many slower.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Passes of one network in both formats, in turns."""

    model: str
    batch: int
    channels_last_ms: tuple[float, ...]
    contiguous_ms: tuple[float, ...]
    precision: str
    device: str
    torch: str
    environment_key: str

    @property
    def ratio(self) -> Ratio:
        """Contiguous / channels-last: the median over the turns, and its interval."""
        pairs = zip(self.contiguous_ms, self.channels_last_ms, strict=True)
        found = ratio_of_rounds([a / b for a, b in pairs])
        assert found is not None
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each network that has no record of this machine yet; write the table."""
    args = build_parser().parse_args(argv)
    return command.run(COMMAND, lambda: measure(args.models, args.out))


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(COMMAND, "Compare two memory formats for the training of networks.")
    parser.add_argument("--models", type=command.names, default=tuple(MODELS), metavar="NAMES")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    return parser


def measure(models: Sequence[str], out: Path) -> int:
    """Add what is missing."""
    for name in models:
        model_spec(name)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = capture(device)
    out.mkdir(parents=True, exist_ok=True)
    found = read(out / RECORDS)
    there = {record.model for record in found if record.environment_key == environment.key}
    for name in models:
        if name in there:
            continue
        record = compare(name, device, environment_key=environment.key, machine=environment.cpu)
        found.append(record)
        with (out / RECORDS).open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        write_atomic(out / TABLE, table(found))
        print(f"{name}: {record.ratio.value:.2f}", file=sys.stderr, flush=True)
    write_atomic(out / TABLE, table(found))
    print(out / TABLE)
    return 0


def compare(name: str, device: str, *, environment_key: str, machine: str) -> Comparison:
    """Passes in both formats, each after the other."""
    least, most = BATCHES[device]
    batch = int(min(most, max(least, WORK[device] / model_spec(name).macs)))
    precision = resolve_precision("auto", torch.device(device))
    last, first = (
        _passes(name, batch, device, precision, memory_format)
        for memory_format in (torch.channels_last, torch.contiguous_format)
    )
    last(), first()  # the first pass of each makes what later ones keep
    times = [(last(), first()) for _ in range(TURNS[device])]
    return Comparison(
        model=name,
        batch=batch,
        channels_last_ms=tuple(a for a, _ in times),
        contiguous_ms=tuple(b for _, b in times),
        precision=precision,
        device=machine if device == "cpu" else torch.cuda.get_device_name(),
        torch=torch.__version__,
        environment_key=environment_key,
    )


def _passes(
    name: str,
    batch: int,
    device: str,
    precision: str,
    memory_format: torch.memory_format,
) -> Callable[[], float]:
    """What runs one forward and backward pass and returns its milliseconds."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=100).train()
    network = network.to(device).to(memory_format=memory_format)
    keep_depthwise_in_fp32(network, precision, torch.device(device))
    dtype = DTYPES.get(precision)
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=memory_format)
    labels = torch.randint(0, 100, (batch,), device=device)

    def run() -> None:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        network.zero_grad(set_to_none=True)

    def on_cpu() -> float:
        start = process_time()
        run()
        return 1e3 * (process_time() - start)

    def on_gpu() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return on_gpu if device == "cuda" else on_cpu


def read(path: Path) -> list[Comparison]:
    """What was measured before.

    Raises:
        RecordError: a line is no record.
    """
    if not path.exists():
        return []
    try:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        pairs = ("channels_last_ms", "contiguous_ms")
        return [Comparison(**line | {key: tuple(line[key]) for key in pairs}) for line in found]
    except (KeyError, TypeError, ValueError) as reason:
        raise RecordError(f"{path} holds a line that is no record: {reason}") from None


def table(records: Sequence[Comparison]) -> str:
    """All comparisons, those of one machine together."""
    parts = [INTRO]
    for key in dict.fromkeys(record.environment_key for record in records):
        mine = [record for record in records if record.environment_key == key]
        known = [(r, r.ratio.interval) for r in mine]
        slower = [r.model for r, interval in known if interval and interval[1] < 1]
        faster = [r.model for r, interval in known if interval and interval[0] > 1]
        lines = [["Model", "Images", "Times as fast", "Channels-last ms"]]
        for record in sorted(mine, key=lambda r: -r.ratio.value):
            times, interval = record.ratio.value, record.ratio.interval
            between = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
            median = statistics.median(record.channels_last_ms)
            lines.append(
                [record.model, str(record.batch), f"{times:.2f}{between}", f"{median:.1f}"]
            )
        parts.append(
            f"\n## {mine[0].device}, {mine[0].precision}, torch {mine[0].torch} [{key}]\n\n"
            f"Channels-last is faster for {len(faster)} of {len(mine)} networks and slower for "
            f"{len(slower)}{': ' + ', '.join(slower) if slower else ''}.\n\n"
            f"{markdown_table(lines, left=1)}"
        )
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(main())
