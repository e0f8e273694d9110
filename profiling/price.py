"""What a million images cost on a machine that is paid by the hour."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from profiling.record import OK, Measurement


@dataclass(frozen=True, slots=True)
class Price:
    """Of an hour of the machine, in any currency, and how long a call may take."""

    per_hour: float
    latency_bound_ms: float | None = None  # of 99% of the calls; None: no bound

    def per_million(self, record: Measurement) -> float | None:
        """Of images classified at the median time of this record, one call after the other."""
        if record.images_per_s is None:
            return None
        return self.per_hour / 3600 * 1e6 / record.images_per_s

    def fits(self, record: Measurement) -> bool:
        """Whether the record has numbers, and they keep to the bound."""
        if record.status != OK or record.p99_ms is None:
            return False
        return self.latency_bound_ms is None or record.p99_ms <= self.latency_bound_ms

    def best(self, records: Iterable[Measurement]) -> list[Measurement]:
        """Of each file on each backend, the fastest batch size that fits."""
        kinds: dict[tuple[str, ...], list[Measurement]] = defaultdict(list)
        for record in records:
            if self.fits(record):
                kind = record.model, record.backend, record.precision, record.artifact_sha256
                kinds[kind].append(record)
        return [max(kind, key=lambda record: record.images_per_s or 0) for kind in kinds.values()]
