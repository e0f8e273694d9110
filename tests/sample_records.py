"""Measurements with plain numbers, for what reads records."""

from dataclasses import replace
from typing import Any

from profiling.record import OK, Measurement, Source
from zoo.environment import Environment

ENVIRONMENT = Environment(
    device="cpu",
    device_count=1,
    compute_capability=None,
    driver=None,
    cpu="Example CPU",
    cpu_flags=("avx2", "fma"),
    cores=2,
    threads=2,
    memory_gib=16.0,
    os="Linux x86_64",
    python="3.11.7",
    torch="2.14.1",
    cuda=None,
    cudnn=None,
)
SOURCE = Source(
    run="resnet_20-s0",
    seed=0,
    recipe="quick",
    selection="validation",
    weights_sha256="aa" * 32,
    dataset="cifar100",
    dataset_digest="dd" * 32,
)
MEASUREMENT = Measurement(
    status=OK,
    reason=None,
    model="resnet_20",
    backend="eager",
    runtime="torch 2.14.1",
    precision="fp32",
    batch=1,
    input="test images",
    params=278_324,
    macs=40_818_944,
    file_bytes=2**20,
    artifact_sha256="aa" * 32,
    top1=0.6123,
    top5=0.87,
    accuracy_images=10_000,
    source=SOURCE,
    load_s=0.05,
    first_call_ms=8.0,
    warmup_calls=12,
    is_stationary=True,
    samples_ms=(4.0, 4.02, 3.98, 4.01, 3.99, 4.0, 4.0, 4.0),
    round_calls=(4, 4),
    round_reference_ms=(2.0, 2.0),
    budget_s=10.0,
    budget_exhausted=False,
    peak_memory_mib=24.5,
    memory_method="peak resident memory of the process less that before opening",
    environment=ENVIRONMENT,
    commit=None,
    created_at="2026-01-01T00:00:00+00:00",
)


def measurement(p50_ms: float | None = None, **changes: Any) -> Measurement:
    """The measurement above with other fields; `p50_ms` fills its samples, of one round."""
    if p50_ms is not None:
        changes |= {"samples_ms": (p50_ms,) * 8}
    if "samples_ms" in changes and "round_calls" not in changes:
        calls = len(changes["samples_ms"])
        changes |= {"round_calls": (calls,), "round_reference_ms": (1.0,)} if calls else {}
    return replace(MEASUREMENT, **changes)


def gap(status: str, reason: str, **changes: Any) -> Measurement:
    """A measurement that did not come about."""
    return measurement(
        status=status,
        reason=reason,
        runtime=None,
        load_s=None,
        first_call_ms=None,
        warmup_calls=0,
        is_stationary=None,
        samples_ms=(),
        round_calls=(),
        round_reference_ms=(),
        peak_memory_mib=None,
        memory_method=None,
        **changes,
    )
