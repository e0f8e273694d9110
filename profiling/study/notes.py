"""What a reader of a study's table must know before its numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence

from profiling.record import OK, Measurement
from profiling.report import DEMONSTRATION, UNCERTAIN
from profiling.study.data import Comparison, Trial
from profiling.study.deployment import measurements_in
from profiling.study.derived import bounds
from profiling.tables import busy_note, throttle_note
from zoo.environment import Environment

REPORTED_NOTE = (
    "Reported: published by the authors of the study, never measured here. In brackets its state: "
    "simulated (made up, by the authors' word or by the look of the figure), doubtful "
    "(contradicted by another figure or by a count), other network (earned by another network "
    "than the row names)."
)
DEPLOYED_NOTE = (
    "A time is the median over single calls, the mean over the seeds' files, +- the wider half "
    "of its 95% interval, of the files the widest; accuracy, memory and size are those of the very "
    "files that were timed, memory at the larger batch for a runtime."
)
MOST_REASONS = 6


def notes_of(
    comparison: Comparison,
    environment: Environment | None,
    *,
    price_per_hour: float | None = None,
    more: Sequence[str] = (),
) -> tuple[str, ...]:
    """How far the trainings went comes first."""
    trials = [trial for arm in comparison.arms for trial in arm.trials]
    lines = []
    if (bounded := bounds(trials)) is not None:
        lines.append(f"{bounded[0].upper()}{bounded[1:]}.")
    if comparison.dataset == "cifar100-mini":
        lines.append(DEMONSTRATION)
    lines += [*_images(trials), *more, *_unfinished(trials)]
    if environment is not None:
        records = measurements_in(trials, environment)
        lines.append(DEPLOYED_NOTE)
        if price_per_hour is not None and any(record.status == OK for record in records):
            lines.append(
                f"Prices: at {price_per_hour:g} an hour, in the same currency, with each file at "
                "its fastest batch."
            )
        if any(record.status == OK and not record.ci_reached for record in records):
            lines.append(UNCERTAIN)
        lines += [*_missing(records), *filter(None, (busy_note(records), throttle_note(records)))]
    return tuple(lines)


def short_bound(comparison: Comparison) -> str:
    """For a title: empty where all trainings took the whole recipe."""
    bounded = any(trial.is_bounded for arm in comparison.arms for trial in arm.trials)
    return ", bounded runs" if bounded else ""


def _images(trials: Iterable[Trial]) -> list[str]:
    listed = [trial for trial in trials if trial.top1 is not None]
    if not listed:
        return []
    counts = sorted({trial.test_images for trial in listed if trial.test_images is not None})
    over = f" over {' or '.join(f'{count:,}' for count in counts)} test images" if counts else ""
    digests = sorted({trial.dataset_digest for trial in listed if trial.dataset_digest is not None})
    of = f", of the data set {' and '.join(digest[:12] for digest in digests)}" if digests else ""
    return [f"Measured accuracies: mean +- standard deviation (number of seeds){over}{of}."]


def _unfinished(trials: Iterable[Trial]) -> list[str]:
    jobs = {trial.id: trial for trial in trials}
    failed = [trial for trial in jobs.values() if trial.failure is not None]
    left = sum(not trial.is_done for trial in jobs.values()) - len(failed)
    lines = [f"Not finished: {left} of {len(jobs)} jobs."] if left else []
    lines += [
        f"Failed: {trial.model} with seed {trial.seed} ({trial.failure})."
        for trial in failed[:MOST_REASONS]
    ]
    if len(failed) > MOST_REASONS:
        lines.append(f"Failed too: {len(failed) - MOST_REASONS} more jobs.")
    return lines


def _missing(records: Iterable[Measurement]) -> list[str]:
    """Why a runtime has no numbers."""
    reasons = Counter(
        (f"{record.backend} {record.precision}", record.reason or record.status)
        for record in records
        if record.status != OK
    )
    lines = [
        f"Not measured: {runtime} ({reason}), {count} record{'s' if count > 1 else ''}."
        for (runtime, reason), count in sorted(reasons.items())
    ]
    more = len(lines) - MOST_REASONS
    return [
        *lines[:MOST_REASONS],
        *([f"Not measured for {more} more reasons."] if more > 0 else []),
    ]
