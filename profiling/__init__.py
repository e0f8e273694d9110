"""What a model costs: counted, timed, recorded and tabulated.

Importing this package does not load torch.
"""

from profiling.bench import benchmark
from profiling.record import Measurement, Source, read_record, read_records
from profiling.runs import run_subjects
from profiling.subject import Progress, Subject

__all__ = [
    "Measurement",
    "Progress",
    "Source",
    "Subject",
    "benchmark",
    "read_record",
    "read_records",
    "run_subjects",
]
