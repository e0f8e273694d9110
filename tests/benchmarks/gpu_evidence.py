"""All that only a GPU can show, from one command in a bounded time: make gpu BUDGET=25m."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from evidence.child import GRACE_S
from evidence.data import prepare
from evidence.place import PYTHONPATH, Place
from evidence.plan import PARTS, Wanted, describe, make_plan, still_to_do
from evidence.rehearsal import write_pictures
from evidence.runner import Clock, Runner, clock_text, now
from evidence.speeds import Speeds
from evidence.store import Store, begin_from
from evidence.task import Task

from profiling.evidence import MACHINE, Machine
from zoo import command
from zoo.data_sources import cache_root
from zoo.errors import MachineError, ZooError, nearest
from zoo.plain import from_plain

COMMAND = "gpu_evidence"
UNITS = {"s": 1, "m": 60, "h": 3600}
LOOK_S = 300
LEAST_SLICE_S = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    started = time.monotonic()
    args = build_parser().parse_args(argv)
    if args.slice < args.budget and not args.plan:
        given = sys.argv[1:] if argv is None else argv
        return command.run(COMMAND, lambda: in_slices(given, args, started))
    return command.run(COMMAND, lambda: gather(args, started))


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(
        COMMAND,
        "Run tests, benchmarks and trainings on this machine and store what they show in one "
        "folder. Every step is stored as it ends; another call with the same --out goes on.",
    )
    parser.add_argument(
        "--budget", type=duration, default="25m", metavar="TIME", help="of this call, such as 25m"
    )
    parser.add_argument(
        "--slice", type=duration, default="9m", metavar="TIME", help="of one of its parts, at most"
    )
    parser.add_argument(
        "--later",
        type=duration,
        default="0s",
        metavar="TIME",
        help="that calls after this one will have: trainings may begin that only they can finish",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-evidence"), metavar="DIR", help="where it is stored"
    )
    parser.add_argument(
        "--continue-from", type=Path, metavar="DIR", help="a copy of what an earlier call stored"
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="for unfinished trainings and compiled code (a folder of the cache)",
    )
    parser.add_argument(
        "--data",
        type=lambda text: tuple(map(Path, command.names(text))),
        metavar="DIRS",
        help="with CIFAR-100 as arrays, or as one or both of its archives; else ZOO_DATA",
    )
    parser.add_argument(
        "--steps",
        type=command.names,
        metavar="NAMES",
        help=f"in this order, of {', '.join(PARTS)}; else all, what tells most for its time first",
    )
    parser.add_argument("--models", type=command.names, metavar="NAMES", help="only these networks")
    parser.add_argument("--seeds", type=seeds, metavar="NUMBERS", help="of trainings")
    parser.add_argument(
        "--epochs", type=command.positive_int, help="of trainings, instead of their recipe's"
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="choose the epoch on a tenth of the training images, instead of training on all",
    )
    parser.add_argument(
        "--jobs", type=command.positive_int, default=1, metavar="N", help="trainings side by side"
    )
    parser.add_argument(
        "--overlap", action="store_true", help="start a training shortly before another ends"
    )
    parser.add_argument(
        "--retry",
        nargs="?",
        const=now(),
        metavar="TIME",
        help="try again what has failed (before this time, such as 2026-01-31T12:00:00+00:00)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and end")
    parser.add_argument(
        "--rehearse", action="store_true", help="run every step at toy size, on any machine"
    )
    return parser


def duration(text: str) -> float:
    """Read 90s, 25m or 1.5h in seconds."""
    try:
        value = float(text[:-1]) * UNITS[text[-1:]]
    except (KeyError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a time such as 90s, 25m or 1.5h, got {text!r}")
    return value


def seeds(text: str) -> tuple[int, ...]:
    """Read '0,1,2'."""
    return tuple(command.seed(item) for item in command.names(text))


def gather(args: argparse.Namespace, started: float) -> int:
    """Do what there is time for; 1 where a step failed."""
    for name in args.steps or ():
        if name not in PARTS:
            raise ZooError(f"no step named {name!r}: {nearest(name, PARTS)}")
    work = (args.work or cache_root() / "evidence").absolute()
    earlier = args.continue_from if args.plan else None
    store = Store((earlier or args.out).absolute())
    if not args.plan:
        if args.continue_from is not None:
            begin_from(args.continue_from, args.out)
        store.open()

    def tell(text: str) -> None:
        line = f"[{clock_text(time.monotonic() - started)}] {text}"
        print(line, file=sys.stderr, flush=True)
        if not args.plan:
            store.log(line)

    machine = look("cpu" if args.rehearse else args.device)
    machine = replace(machine, is_rehearsal=args.rehearse)
    tell(f"{machine.environment.device}, torch {machine.environment.torch}")
    if machine.missing:
        tell(f"not installed, left out: {', '.join(machine.missing)}")
    pictures = work / "pictures"
    wanted = Wanted(
        parts=args.steps,
        models=args.models,
        seeds=args.seeds,
        epochs=args.epochs,
        is_full=not args.held_out,
        toy=f"folder:{pictures}" if args.rehearse else None,
        device="cpu" if machine.environment.device == "cpu" else "cuda",
    )
    tasks = plan(wanted, store, retry=args.retry)
    tell(f"to do, with {clock_text(args.budget)}:\n{describe(tasks, args.budget)}")
    if args.plan:
        return 0
    work.mkdir(parents=True, exist_ok=True)
    if args.rehearse:
        write_pictures(pictures)
    if machine not in store.read().machines:
        store.add(MACHINE, asdict(machine) | {"environment": machine.environment.to_json()})
    place = Place(
        store=store,
        work=work,
        device=wanted.device,
        environment=machine.environment.key,
        missing=frozenset(machine.missing),
        data=None if args.rehearse else data_folder(args.data, work),
        is_rehearsal=args.rehearse,
    )
    clock = Clock(ends=started + args.budget, later_s=args.later)
    runner = Runner(place, clock, jobs=args.jobs, overlap=args.overlap, tell=tell)
    runner.run(tasks)
    left = plan(wanted, store, retry=None)
    tell(f"{len(left)} steps are left" if left else "all steps are done")
    print(args.out)
    return int(runner.has_failed)


def in_slices(arguments: Sequence[str], args: argparse.Namespace, started: float) -> int:
    """Make the call in parts, each a call of its own, until one of them has nothing to begin."""
    ends, code, given = started + args.budget, 0, list(arguments)
    if args.retry is not None:  # what fails in one part of this call is not for the next
        given += ["--retry", args.retry]
    records = Store(args.out.absolute())
    while (left := ends - time.monotonic()) > LEAST_SLICE_S:
        before = len(records.read().steps)
        this = min(left, args.slice)
        options = ("--budget", f"{this:.0f}s", "--slice", f"{this:.0f}s")
        later = ("--later", f"{left - this + args.later:.0f}s")
        command_line = [sys.executable, __file__, *given, *options, *later]
        found = _call(command_line)
        if found not in (0, 1):
            return found
        code = max(code, found)
        if len(records.read().steps) == before:
            break
    print(args.out)
    return code


def _call(command_line: Sequence[str]) -> int:
    """Run a part of this call; an interruption is passed on, so that it can stop what it began."""
    process = subprocess.Popen(command_line, stdout=subprocess.DEVNULL)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait(timeout=2 * GRACE_S)
        raise


def plan(wanted: Wanted, store: Store, *, retry: str | None) -> list[Task]:
    """What is still to do, by what is known by now."""
    speeds = Speeds(store.read().steps, device=wanted.device)
    return still_to_do(make_plan(wanted, speeds), store.outcomes(), retry=retry)


def look(device: str) -> Machine:
    """Ask a process that ends before the first step: this one never holds memory of the GPU."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command_line = [sys.executable, "-m", "evidence.look", device]
    try:
        answer = subprocess.run(
            command_line, env=env, capture_output=True, text=True, timeout=LOOK_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise MachineError(
            f"torch was not imported within {LOOK_S} s: zoo-doctor says more"
        ) from None
    if answer.returncode:
        said = [line for line in answer.stderr.splitlines() if line.strip()]
        raise MachineError(f"torch does not work here ({said[-1]}): zoo-doctor says more")
    return from_plain(Machine, json.loads(answer.stdout))


def data_folder(given: tuple[Path, ...] | None, work: Path) -> Path | None:
    """Where the commands find CIFAR-100."""
    folders = given
    if folders is None:
        variable = os.environ.get("ZOO_DATA")
        folders = (Path(variable).expanduser().absolute(),) if variable else ()
    return prepare(tuple(folder.absolute() for folder in folders), work)


if __name__ == "__main__":
    raise SystemExit(main())
