"""The commands `zoo-list` and `zoo-doctor`."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from zoo import __version__, doctor
from zoo.command import Parser, run
from zoo.doctor import Check
from zoo.errors import ZooError

COLOURS = {"ok": "green", "missing": "yellow", "problem": "red"}
VERDICTS = {
    True: "The main job can run: make demo, or zoo-train resnet_20 --recipe quick.",
    False: "The main job cannot run before this is fixed: ",
}
RUNS = Path("runs")
FACTORS = {"": 1, "k": 1_000, "M": 1_000_000}
WHERE = "The commands after -> are for a clone of cifar-zoo."


def main_list(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-list`."""
    args = list_parser().parse_args(argv)
    return run("zoo-list", lambda: _list(args) if args.model is None else _show(args))


def list_parser() -> Parser:
    """All options of `zoo-list`."""
    parser = Parser(
        "zoo-list",
        "List the models with their parameters and MACs, or show the card of one: its stages, its "
        "costs, what others reported of it and what was measured.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="show the card of this one")
    parser.add_argument("--group", metavar="NAMES", help="only these, with commas between")
    parser.add_argument("--family", metavar="NAMES", help="only these, with commas between")
    parser.add_argument(
        "--min-params", type=count, metavar="N", help="at least so many, such as 300k"
    )
    parser.add_argument(
        "--max-params", type=count, metavar="N", help="at most so many, such as 1.5M"
    )
    parser.add_argument(
        "--sort",
        choices=("name", "params", "macs"),
        help="without it, by group and then by parameters",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help=f"where runs of MODEL are sought; without it, in {RUNS} where it has any",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON in place of text")
    shape.add_argument("--csv", action="store_true", help="print the list as CSV")
    return parser


def count(text: str) -> int:
    """Read a number of parameters: 270000, 300k or 1.5M.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", text, re.ASCII)
    number = float(found[1]) * FACTORS[found[2]] if found else 0.5
    if number != int(number):
        raise argparse.ArgumentTypeError(
            f"expected a number of parameters such as 270000, 300k or 1.5M, got {text!r}"
        )
    return int(number)


def main_doctor(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-doctor`."""
    parser = Parser("zoo-doctor", "Say what works on this machine, and why the rest does not.")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    args = parser.parse_args(argv)
    return run("zoo-doctor", lambda: _diagnose(as_json=args.json))


def to_json(checks: Sequence[Check]) -> str:
    """The report for programs."""
    lines = [asdict(check) for check in checks]
    report = {"version": __version__, "ready": doctor.is_ready(checks), "checks": lines}
    return json.dumps(report, indent=1)


def to_text(checks: Sequence[Check]) -> str:
    """The report as plain text, one line for each check and one for each fix."""
    lines = []
    for check in checks:
        lines.append(f"{check.name:<12} {check.status:<8} {check.detail}")
        if check.fix:
            lines.append(f"{'':<21} -> {check.fix}")
    return "\n".join((*lines, "", *_closing(checks)))


def _list(args: argparse.Namespace) -> int:
    from zoo import catalogue
    from zoo.models import MODELS

    if args.runs is not None:
        raise ZooError("--runs belongs to the card of one model: zoo-list MODEL --runs DIR")
    choice = catalogue.Choice(
        groups=_names(args.group),
        families=_names(args.family),
        min_params=args.min_params,
        max_params=args.max_params,
        sort=args.sort,
    )
    listed = catalogue.entries(catalogue.select(MODELS.values(), choice))
    if args.json:
        print(catalogue.to_json(listed))
    elif args.csv:
        print(catalogue.to_csv(listed), end="")
    elif sys.stdout.isatty():
        from rich.console import Console

        catalogue.print_table(listed, Console(markup=False, highlight=False))
    else:
        print(catalogue.to_text(listed))
    return 0


def _show(args: argparse.Namespace) -> int:
    for option in ("group", "family", "min_params", "max_params", "sort", "csv"):
        value = getattr(args, option)
        if value is not None and value is not False:
            flag = f"--{option.replace('_', '-')}"
            raise ZooError(f"{flag} belongs to the list: leave it or {args.model} out")
    from zoo import card
    from zoo.checkpoint import complete_runs
    from zoo.errors import CheckpointError
    from zoo.models import model_spec

    spec = model_spec(args.model)
    runs = [] if args.runs is None else complete_runs(args.runs)
    if args.runs is None:
        with suppress(CheckpointError):  # nobody asked for runs that are not complete yet
            runs = complete_runs(RUNS)
    made = card.make_card(spec, runs=runs)
    print(card.to_json(made) if args.json else card.to_text(made))
    return 0


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(","))


def _diagnose(*, as_json: bool) -> int:
    checks = doctor.diagnose()
    if as_json:
        print(to_json(checks))
    elif sys.stdout.isatty():
        _print_table(checks)
    else:
        print(to_text(checks))
    return 0 if doctor.is_ready(checks) else 1


def _print_table(checks: Sequence[Check]) -> None:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:  # the doctor is for broken environments too
        print(to_text(checks))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("check", "status", "what was found"):
        table.add_column(heading, no_wrap=heading != "what was found")
    for check in checks:
        detail = Text(check.detail)
        if check.fix:
            detail.append(f"\n-> {check.fix}", style="bold")
        table.add_row(check.name, Text(check.status, style=COLOURS[check.status]), detail)
    console = Console()
    console.print(table)
    for line in _closing(checks):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _closing(checks: Sequence[Check]) -> list[str]:
    missing = [check.name for check in checks if check.is_needed and check.status != "ok"]
    verdict = VERDICTS[not missing] + ", ".join(missing)
    return [WHERE, verdict] if any(check.fix for check in checks) else [verdict]
