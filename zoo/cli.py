"""The command zoo-doctor."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from zoo import __version__, doctor
from zoo.command import Parser, run
from zoo.doctor import Check

COLOURS = {"ok": "green", "missing": "yellow", "problem": "red"}
VERDICTS = {
    True: "The main job can run: make demo, or zoo-train resnet_20 --recipe quick.",
    False: "The main job cannot run before this is fixed: ",
}
WHERE = "The commands after -> are for a clone of cifar-zoo."


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
