"""A fingerprint of the machine: two times are compared only where it is equal."""

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoo.allocator import keeps_memory
from zoo.plain import from_plain

# What a kernel library may choose its code by; other CPU flags do not matter here.
ISA_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "sve", "bf16"),
)

CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
RESULTS = "bench_results"  # in a checkout
MAX_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # kHz


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Device, driver and library versions under which something was measured or trained."""

    device: str  # "cpu" or the GPU's name
    device_count: int
    compute_capability: str | None  # "7.0"; None on a CPU
    driver: str | None
    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int  # that this process may use
    threads: int  # of torch's intra-op pool
    memory_gib: float
    os: str
    python: str
    torch: str
    cuda: str | None
    cudnn: str | None
    max_clock_mhz: float | None = None  # of the CPU; None where the system does not tell
    quota_cores: float | None = None  # CPU time a second that the container may use; None: all
    memory_limit_gib: float | None = None  # of the container; None: all
    keeps_memory: bool = False  # that it frees, see zoo.allocator; older records: it did not

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that differ where any field does that decides a time.

        The quota of a container counts where there is one, and the allocator where it keeps memory:
        so older records have the key that they had. The container's memory limit and the clock do
        not: the one changes no time, the other follows from the CPU, and older records know
        neither.
        """
        return _key(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self) | {"cpu_flags": list(self.cpu_flags)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Environment":
        """Read what `to_json` wrote; unknown fields of later versions are dropped."""
        return from_plain(cls, value)


@cache
def _key(environment: Environment) -> str:
    value = environment.to_json()
    for name in ("max_clock_mhz", "memory_limit_gib"):
        del value[name]
    if value["quota_cores"] is None:
        del value["quota_cores"]
    if not value["keeps_memory"]:
        del value["keeps_memory"]
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def capture(device: str = "cpu") -> Environment:
    """Describe this machine as seen by torch, for work on `device` ("cpu", "cuda", "cuda:1")."""
    import torch

    capability = driver = None
    name, count = "cpu", 1
    if device.startswith("cuda"):
        name, count = torch.cuda.get_device_name(device), torch.cuda.device_count()
        capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
        driver = _driver()
    cpu, flags = _cpu()
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    return Environment(
        device=name,
        device_count=count,
        compute_capability=capability,
        driver=driver,
        cpu=cpu,
        cpu_flags=flags,
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        os=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        cudnn=None if cudnn is None else str(cudnn),
        max_clock_mhz=_max_clock_mhz(),
        keeps_memory=keeps_memory(),
        **container_limits(),
    )


def git_commit(root: Path = Path(__file__).parents[1]) -> str | None:
    """Commit of a checkout, that of this code by default; "-dirty" where files differ from it.

    What lies in `bench_results` is no code: measuring changes it. None where there is no checkout,
    as for an installed package.
    """
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(root), *arguments)
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return answer.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "-uno", "--", ".", f":(exclude){RESULTS}")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def has_bf16_units(flags: tuple[str, ...]) -> bool:
    """Whether a CPU with these flags multiplies bf16 in hardware."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def cpu_flags() -> tuple[str, ...]:
    """The instruction sets of this CPU that matter for speed."""
    return _cpu()[1]


def _cpu() -> tuple[str, tuple[str, ...]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    present = set((facts.get("flags") or facts.get("Features") or "").split())
    return facts.get("model name", platform.machine()), tuple(f for f in ISA_FLAGS if f in present)


def container_limits(root: Path = CGROUPS) -> dict[str, float | None]:
    """`quota_cores` and `memory_limit_gib` of this process's control group, of either version.

    A limit that the whole machine would not exceed is none.
    """
    two, one_cpu, one_memory = _groups(root)
    quota = _words(two / "cpu.max") or (
        _words(one_cpu / "cpu.cfs_quota_us") + _words(one_cpu / "cpu.cfs_period_us")
    )
    memory = _words(two / "memory.max") or _words(one_memory / "memory.limit_in_bytes")
    cores = None
    if len(quota) == 2 and all(word.isdigit() for word in quota) and int(quota[1]):  # else "max"
        cores = round(int(quota[0]) / int(quota[1]), 2)
    limit = int(memory[0]) if memory and memory[0].isdigit() else None
    if limit is not None and limit >= _memory_bytes() > 0:
        limit = None
    return {
        "quota_cores": None if cores is None or cores >= usable_cores() else cores,
        "memory_limit_gib": None if limit is None else round(limit / 2**30, 2),
    }


def _groups(root: Path) -> tuple[Path, Path, Path]:
    """Folders of this process's group: version 2, and version 1 for the CPU and for memory."""
    found = {"": root, "cpu": root / "cpu", "memory": root / "memory"}
    for line in _lines(OWN_GROUPS):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            # Inside a container the path may be that of the host, which is not visible.
            folder = found.get(name, root) / path.strip("/")
            if name in found and folder.is_dir():
                found[name] = folder
    return found[""], found["cpu"], found["memory"]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _max_clock_mhz() -> float | None:
    words = _words(MAX_CLOCK)
    return round(int(words[0]) / 1e3, 1) if words and words[0].isdigit() else None


def usable_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _driver() -> str | None:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None
