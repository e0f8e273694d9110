"""The roof over a device: how fast it copies and multiplies, measured once per environment.

A call takes at least the time of its FLOPs at the matrix rate, and that of its bytes at the copy
bandwidth. The share of the roof that a record reaches is the longer of the two by its median time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from profiling.record import OK, Measurement, now
from zoo.command import describe
from zoo.environment import Environment, cpu_flags, has_bf16_units
from zoo.errors import MachineError, RecordError
from zoo.files import read_json, write_json
from zoo.plain import from_plain
from zoo.text import columns

SCHEMA = 1
FOLDER = "roofline"  # beside records/, and in the user's cache
# Bytes of a copy's two arrays together, from what caches hold to far beyond them.
COPY_BYTES = {"cpu": (2**18, 2**20, 2**22, 2**24, 2**26, 2**29), "cuda": (2**24, 2**27, 2**31)}
SIDES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # of square matrices
AT_ONCE = {"cpu": 1, "cuda": 10}  # calls in one timing: a GPU must not wait for the host
LEAST_TIMINGS, TIMED_S = 5, 0.4
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
MEASURE_LIMIT_S = 300.0
DISTURBED = "others used the CPU while the roofline was measured"
ROOF_NOTE = (
    "share of the FLOPs a second that this device allows: those of its matrix products, or "
    "FLOPs/byte times its copy bandwidth, whichever is less; both as measured here with as many "
    "threads. The bytes are those that convolutions and matrix products read and write once: a "
    "runtime that keeps values in cache from layer to layer moves fewer, and may be above 100%."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Roof:
    """What one device reached on a number of threads; the best of several timings."""

    environment: Environment
    copies: tuple[tuple[int, float], ...]  # (bytes read and written, bytes a second), ascending
    products: tuple[tuple[str, float], ...]  # (precision, FLOPs a second) of matrix products
    created_at: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not self.copies or any(rate <= 0 for _, rate in (*self.copies, *self.products)):
            raise ValueError("copies and products do not hold rates above 0")

    def bandwidth(self, working_set: int) -> float:
        """Bytes a second for so many bytes in use: of the next smaller copy, or a larger one."""
        sizes = [size for size, _ in self.copies if size <= working_set]
        least = max(sizes, default=0)
        return max(rate for size, rate in self.copies if size >= least)

    def matrix_rate(self, precision: str) -> float | None:
        """FLOPs a second; None where the chip has no units for it."""
        return dict(self.products).get(precision)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"environment": self.environment.to_json()}


def attainable_flops(record: Measurement, roof: Roof | None) -> float | None:
    """FLOPs a second that the roof allows what was measured; None where something is not known."""
    work = record.intensity
    if roof is None or roof.environment.key != record.environment.key or not work:
        return None
    assert record.footprint is not None
    rate = roof.matrix_rate(record.precision)
    in_use = record.footprint.working_set_bytes(record.batch, record.precision)
    return None if rate is None or in_use is None else min(rate, work * roof.bandwidth(in_use))


def reached_flops(record: Measurement) -> float | None:
    """FLOPs a second at the median time."""
    if record.flops is None or record.images_per_s is None:
        return None
    return record.flops * record.images_per_s


def share_of_roof(record: Measurement, roof: Roof | None) -> float | None:
    """Which part of what the roof allows was reached."""
    allowed, reached = attainable_flops(record, roof), reached_flops(record)
    return reached / allowed if allowed and reached is not None else None


# Files --------------------------------------------------------------------------------------


def read_roof(path: Path) -> Roof:
    """Read what `keep` wrote.

    Raises:
        RecordError: the file is missing, damaged or of a newer schema.
    """
    value = read_json(path, RecordError)
    again = "remove it and run zoo-bench --roofline"
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise RecordError(f"{path} is no roofline: it states no schema; {again}")
    if value["schema"] > SCHEMA:
        raise RecordError(
            f"{path} has schema {value['schema']}, this version reads up to {SCHEMA}: "
            "update cifar-zoo"
        )
    try:
        return from_plain(Roof, value)
    except (TypeError, ValueError) as reason:
        raise RecordError(f"{path} is a damaged roofline ({reason}): {again}") from None


def read_roofs(
    *folders: Path, on_damage: Callable[[RecordError], None] | None = None
) -> dict[str, Roof]:
    """The newest roof of each environment key below the folders.

    With `on_damage`, a file that cannot be read is reported to it and left out.

    Raises:
        RecordError: a file is damaged or of a newer schema.
    """
    found = []
    for path in sorted({p.resolve() for f in folders for p in f.rglob(f"{FOLDER}/*.json")}):
        try:
            found.append(read_roof(path))
        except RecordError as error:
            if on_damage is None:
                raise
            on_damage(error)
    return _newest(found)


def keep(roof: Roof, folder: Path) -> Path:
    """Write to <folder>/roofline/<environment key>.json."""
    path = folder / FOLDER / f"{roof.environment.key}.json"
    write_json(path, roof.to_json())
    return path


def kept(key: str, *folders: Path) -> Roof | None:
    """The newest roof of an environment; files that cannot be read count as absent."""
    found = []
    for folder in folders:
        try:
            found.append(read_roof(folder / FOLDER / f"{key}.json"))
        except (RecordError, OSError):
            continue
    return _newest(roof for roof in found if roof.environment.key == key).get(key)


def cache() -> Path | None:
    """The user's cache folder; None where there is no place for one."""
    from zoo.data_sources import cache_root

    try:
        return cache_root()
    except MachineError:
        return None


def roof_of(
    records: Sequence[Measurement],
    device: str,
    threads: int | None,
    out: Path,
    say: Callable[[str], None],
) -> Roof | None:
    """The roof over new records, kept beside them in `out`: the kept one, else measured now.

    None, with a word to `say` where that tells something, if nothing needs it or none could be
    measured. One that was measured while others used the CPU is not kept.
    """
    measured = [r for r in records if r.status == OK and r.intensity is not None]
    if not measured:
        return None
    key = measured[0].environment.key
    folders = [folder for folder in (cache(), out) if folder is not None]
    roof = kept(key, *folders)
    if roof is None:
        say("measuring once how fast this device copies and multiplies")
        try:
            roof, is_disturbed = measure(device, threads)
        except MachineError as error:
            say(f"{error}; without it no share of the roof is told")
            return None
        if is_disturbed:
            say(f"{DISTURBED}: it is used this once and not kept")
            folders = []
    for folder in folders:
        if kept(key, folder) != roof:
            try:
                keep(roof, folder)
            except OSError as error:  # of a cache that cannot be written: the times matter more
                say(f"the roofline is not kept: {describe(error)}")
    return roof if roof.environment.key == key else None


def text(roof: Roof) -> str:
    """What was measured, for people."""
    from profiling.tables import place  # which imports this module

    lines = [["what", "rate"]]
    lines += [
        [f"copy, {size / 2**20:g} MiB in use", f"{rate / 1e9:,.1f} GB/s"]
        for size, rate in roof.copies
    ]
    lines += [
        [f"matrix product, {precision}", f"{rate / 1e9:,.1f} GFLOP/s"]
        for precision, rate in roof.products
    ]
    return "\n".join((place(roof.environment), *columns(lines, right=(1,))))


def _newest(roofs: Iterable[Roof]) -> dict[str, Roof]:
    by_age = sorted(roofs, key=lambda roof: roof.created_at)
    return {roof.environment.key: roof for roof in by_age}


# Measuring ----------------------------------------------------------------------------------


def measure(device: str, threads: int | None = None) -> tuple[Roof, bool]:
    """Measure the roof in a process of its own; and whether others used the CPU meanwhile.

    Raises:
        MachineError: nothing can be measured on this device.
    """
    from profiling.host import LoadMeter, idlest_core
    from profiling.process import START_LIMIT_S, WorkerError, WorkerProcess

    core = idlest_core() if (device, threads) == ("cpu", 1) else None
    greeting = {"device": device, "threads": threads, "core": core}
    try:
        with WorkerProcess(threads=threads) as worker:
            found = worker.ask("hello", limit_s=START_LIMIT_S, **greeting)
            meter = LoadMeter(lambda: [worker.pid], core=core)
            rates = worker.ask("roofline", limit_s=MEASURE_LIMIT_S)
            load = meter.read()
    except WorkerError as error:
        raise MachineError(f"no roofline of device {device!r}: {error}") from None
    facts = {"environment": found, **rates, "created_at": now(), "schema": SCHEMA}
    return from_plain(Roof, facts), load is not None and load.is_busy


def measure_here(device: str) -> dict[str, list[list[Any]]]:
    """Copy and multiply on torch's present threads."""
    import torch

    kind = device.partition(":")[0]
    copies = []
    for size in COPY_BYTES[kind]:
        source = torch.zeros(size // 8, device=device)
        copy = partial(torch.empty_like(source).copy_, source)
        copies.append([size, size / _best_s(copy, device)])
        del source, copy
    products = []
    for precision in precisions(device, cpu_flags()):
        best = max(_product_rate(side, precision, device) for side in SIDES[kind])
        products.append([precision, best])
    return {"copies": copies, "products": products}


def precisions(device: str, flags: Iterable[str]) -> list[str]:
    """Number formats that the chip multiplies in hardware; `flags` are those of the CPU."""
    if device.startswith("cuda"):
        import torch

        capability = torch.cuda.get_device_capability(device)
        needed = {"fp32": (0, 0), "fp16": (7, 0), "int8": (7, 5), "bf16": (8, 0)}
        return [name for name, least in needed.items() if capability >= least]
    units = set(flags)
    found = {
        "fp32": True,
        "bf16": has_bf16_units(tuple(units)),
        "int8": bool(units & INT8_FLAGS),
    }
    return [name for name, is_there in found.items() if is_there]


def _product_rate(side: int, precision: str, device: str) -> float:
    """FLOPs a second of one product of two square matrices."""
    import torch

    from zoo.session import tf32

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision == "int8":
        left, right = (torch.ones((side, side), dtype=torch.int8, device=device) for _ in "lr")
        # A GPU wants the second one column by column.
        right = right.t() if device.startswith("cuda") else right
        return 2 * side**3 / _best_s(lambda: torch._int_mm(left, right), device)
    left, right = (
        torch.randn((side, side), device=device).to(dtypes[precision]) for _ in ("left", "right")
    )
    result = torch.empty_like(left)
    with tf32(allowed=False):
        return 2 * side**3 / _best_s(lambda: torch.mm(left, right, out=result), device)


def _best_s(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, the shortest of what TIMED_S allows."""
    import torch

    is_cuda = device.startswith("cuda")
    at_once = AT_ONCE[device.partition(":")[0]]
    call()
    if is_cuda:
        torch.cuda.synchronize(device)
    best, timings, end = float("inf"), 0, time.perf_counter() + TIMED_S
    while timings < LEAST_TIMINGS or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(at_once):
            call()
        if is_cuda:
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - start) / at_once)
        timings += 1
    return best
