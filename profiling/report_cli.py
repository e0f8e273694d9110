"""The command `zoo-report`."""

import argparse
import sys
from collections.abc import Sequence

from profiling.options import RESULTS, RUNS, report_parser
from zoo import command
from zoo.errors import RecordError, ZooError


def main_report(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-report`."""
    args = report_parser().parse_args(argv)
    return command.run("zoo-report", lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    if args.evidence is not None:
        return _import(args)
    from profiling.record import read_records
    from profiling.roofline import read_roofs
    from profiling.study.reading import read_comparisons

    folders = args.folders or [folder for folder in (RUNS, RESULTS) if folder.is_dir()]
    damaged: list[RecordError] = []
    records = read_records(*folders, on_damage=damaged.append)
    roofs = read_roofs(*folders, on_damage=damaged.append)
    comparisons = read_comparisons(*folders, records=records, on_damage=damaged.append)
    for error in damaged:
        print(f"zoo-report: left out: {error}", file=sys.stderr)
    from profiling.report import write_report
    from profiling.study.report import FOLDER, PAGE, former_files, remove, study_files

    study = study_files(comparisons, roofs=roofs, price_per_hour=args.price_per_hour)
    if not records and not study:
        sought = " and ".join(map(str, folders or (RUNS, RESULTS)))
        raise ZooError(f"no records in {sought}: measure a run with zoo-bench")
    folder = args.out / FOLDER
    former = former_files(folder)
    more = {folder / name: content for name, content in study.items()}
    report = write_report(records, args.out, readme=args.readme, roofs=roofs, more=more)
    remove(folder, former - study.keys())
    print(report.markdown)
    print(report.page)
    if study:
        print(folder / PAGE)
    return 1 if damaged else 0


def _import(args: argparse.Namespace) -> int:
    from profiling.evidence_import import merge_here
    from training.curves import draw_curves

    return merge_here(args.evidence, others=args.folders, draw=draw_curves)
