"""Compare counts that no machine disturbs with counts.json beside this file, or make it anew.

PYTHONPATH=. .venv/bin/python tests/benchmarks/counts.py [--write]
"""

import sys
from collections.abc import Sequence

from gates.counting import FILE, GROUPS, REMAKE, differences, other_versions, versions

from zoo import command
from zoo.errors import MachineError
from zoo.files import read_json, write_json

COMMAND = "counts"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every group, or write them all."""
    parser = command.Parser(COMMAND, "Compare counts that are the same on every machine.")
    parser.add_argument("--write", action="store_true", help="make counts.json anew")
    args = parser.parse_args(argv)
    return command.run(COMMAND, lambda: write() if args.write else compare())


def write() -> int:
    """Make the file."""
    packages = sorted({package for _, needed in GROUPS.values() for package in needed})
    found = {name: count() for name, (count, _) in GROUPS.items()}
    write_json(FILE, {"versions": versions(packages), **found})
    print(FILE)
    return 0


def compare() -> int:
    """Say what moved; 1 where something did."""
    stored = read_json(FILE, MachineError)
    moved = []
    for name, (count, _) in GROUPS.items():
        reason = other_versions(name, stored)
        if reason is not None:
            print(f"{COMMAND}: {name} not compared: {reason}", file=sys.stderr)
            continue
        moved += differences(stored[name], count())
    for line in moved:
        print(line)
    if moved:
        print(f"{COMMAND}: {len(moved)} counts moved; {REMAKE}", file=sys.stderr)
    return int(bool(moved))


if __name__ == "__main__":
    raise SystemExit(main())
