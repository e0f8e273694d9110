"""The plan of a sweep: as a file, which says what belongs together, and as a table."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.sweep import Planned, claim_path
from training.sweep_claims import holder, is_alive
from training.sweep_cost import Prediction, predict, samples_of
from training.sweep_jobs import Group
from training.sweep_record import (
    MOST_ATTEMPTS,
    JobRecord,
    read_job_records,
    read_record,
    record_path,
)
from zoo.files import write_json
from zoo.text import columns

SCHEMA = 1
HEADINGS = ("job", "training", "images a step", "steps", "GMACs", "predicted s", "state", "what")


def write_plan(out: Path, name: str, groups: Sequence[Group], planned: Sequence[Planned]) -> Path:
    """Write which jobs belong together; the same list has the same file, whoever writes it."""
    jobs = [
        {
            "id": one.job.id,
            "job": asdict(one.job),
            "work": asdict(one.work),
        }
        for one in planned
    ]
    value = {
        "schema": SCHEMA,
        "name": name,
        "groups": [group.to_json() for group in groups],
        "jobs": jobs,
    }
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub("[^A-Za-z0-9._-]+", "-", name)
    path = out / "plans" / f"{slug}-{digest}.json"
    write_json(path, value)
    return path


def table(planned: Sequence[Planned], out: Path, environment_key: str) -> str:
    """One line for each job, and what is left to do in all."""
    samples = samples_of(read_job_records(out), environment_key)
    rows: list[Sequence[str]] = [HEADINGS]
    left, predicted = 0, []
    for one in planned:
        record = read_record(record_path(out, one.job.id))
        steps = [step for step in one.steps if record is None or not record.has(step)]
        found = predict(one.job.model, steps, samples) if steps else None
        left += bool(steps)
        if found is not None:
            predicted.append(found.seconds)
        rows.append(_row(one, "no record" if steps else "", found, _state(one, record, out)))
    closing = f"{left} of {len(planned)} jobs to do"
    if predicted:
        closing += f", predicted {sum(predicted):,.0f} s for {len(predicted)} of them"
    if left > len(predicted):
        unknown = left - len(predicted)
        closing += f"; {unknown} without a past record on this machine ({environment_key})"
    return "\n".join([*columns(rows, right=(2, 3, 4, 5)), closing])


def _row(one: Planned, otherwise: str, found: Prediction | None, state: str) -> Sequence[str]:
    work, macs = one.work, one.work.training_macs
    seconds = otherwise
    if found is not None:
        seconds = f"{found.seconds:,.0f}" + ("" if found.is_of_model else " (other models)")
    return (
        one.job.id,
        "bounded" if work.is_bounded else "whole",
        f"{work.batch_size}",
        "" if work.steps is None else f"{work.steps:,}",
        "" if macs is None else f"{(macs + work.pretraining_macs) / 1e9:,.0f}",
        seconds,
        state,
        str(one.job),
    )


def _state(one: Planned, record: JobRecord | None, out: Path) -> str:
    path = claim_path(out, one.job.id)
    if is_alive(path):
        return f"under way ({holder(path)})"
    if record is None:
        return "to do"
    if record.is_complete(one.steps):
        return "done"
    if len(record.failures) >= MOST_ATTEMPTS:
        return f"failed: {record.failures[-1].reason}"
    done = sum(record.has(step) for step in one.steps)
    return f"{done} of {len(one.steps)} steps done"
