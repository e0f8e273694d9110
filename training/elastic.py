"""One command, several processes: torch's elastic agent, started from here."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from zoo.environment import usable_cores
from zoo.errors import MachineError, ZooError, first_line
from zoo.files import read_json, write_json

# Our packages lie where this file does; the folder that the user works in may hold others.
WORKER = f"""
import runpy, sys
sys.path.append({str(Path(__file__).resolve().parents[1])!r})
runpy.run_module("training.cli", run_name="__main__", alter_sys=True)
"""
MAX_RESTARTS = 3
MOST_PORT = 65535
PR_SET_PDEATHSIG = 1  # of prctl(2)
OUTCOME = "ZOO_TRAIN_OUTCOME"  # the folder in which a process leaves how it ended
BEGAN = "began"  # of the files there, one that a process leaves when it starts
LOGGERS = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run")


class PeerLost(MachineError):
    """Another process of the run is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Which processes to start, here and on how many nodes.

    Raises:
        ZooError: the number of nodes is no range, or the place to meet is missing or none.
    """

    nproc: int  # on this node
    nodes: tuple[int, int] = (1, 1)  # at least, at most
    endpoint: str | None = None  # HOST:PORT where the nodes meet
    id: str | None = None  # of the job; the same on each node
    max_restarts: int = MAX_RESTARTS

    def __post_init__(self) -> None:
        least, most = self.nodes
        if not 1 <= least <= most:
            raise ZooError(f"--nnodes {least}:{most}: expected LEAST:MOST, such as 2:4")
        if most > 1 and self.endpoint is None:
            raise ZooError(
                f"--nnodes {least}:{most} needs a place where the nodes meet: "
                "pass --rdzv-endpoint HOST:PORT, the same on each"
            )
        host, _, port = (self.endpoint or "localhost:0").rpartition(":")
        if not host or not port.isdecimal() or int(port) > MOST_PORT:
            raise ZooError(
                f"--rdzv-endpoint {self.endpoint}: expected HOST:PORT, such as node1:29400"
            )

    @property
    def job(self) -> str:
        """The name by which a restarted process finds its run."""
        return self.id or self.endpoint or uuid.uuid4().hex


def is_worker() -> bool:
    """Whether a launcher, ours or torchrun, started this process."""
    return "LOCAL_RANK" in os.environ


def is_launched() -> bool:
    """Whether `launch` started this process and speaks for it."""
    return OUTCOME in os.environ


def restarts_are_unsafe() -> bool:
    """Whether a launcher may restart this process with the store that it has now.

    torchrun keeps it, and with it where the processes before listened (pytorch/pytorch#135712).
    """
    shares = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return shares and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def speaks() -> bool:
    """Whether this process is the one that shows progress and prints: of several, the first."""
    return os.environ.get("RANK", "0") == "0"


def quiet_torch() -> None:
    """Keep torch's C++ part from logging stacks of what we say in a line; before its import."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def launch(arguments: Sequence[str], wanted: Launch) -> None:
    """Run zoo-train with `arguments` in several processes until they are done.

    A process that is killed ends the others, and all start again from the last save. An error that
    one reports ends the run: it would meet it again.

    Raises:
        ZooError: the error that a process reported, with its exit code.
        MachineError: the processes ended without one more often than they may be restarted.
        KeyboardInterrupt: (or what else the signal means) one came, and the processes saved.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith(LOGGERS):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say, we say in a line
    least, most = wanted.nodes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // wanted.nproc)))
    # One store for all restarts still says where the processes that ended listened: the new ones
    # sometimes wait for those, or are refused (pytorch/pytorch#135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    handlers = {number: signal.getsignal(number) for number in _stopping()}
    heeded = [number.name for number, how in handlers.items() if how != signal.SIG_IGN]
    config = LaunchConfig(
        min_nodes=least,
        max_nodes=most,
        nproc_per_node=wanted.nproc,
        run_id=wanted.job,
        rdzv_backend="c10d",
        rdzv_endpoint=wanted.endpoint or "localhost:0",
        max_restarts=wanted.max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # another folder would stay in $TMPDIR
        signals_to_handle=",".join(heeded),  # nohup has one ignored
    )
    with tempfile.TemporaryDirectory(prefix="zoo-train-") as folder:
        os.environ[OUTCOME] = folder
        try:
            elastic_launch(config, sys.executable)("-P", "-c", WORKER, *arguments)
        except RendezvousError as error:
            if any(Path(folder).glob(f"*.{BEGAN}")):
                raise MachineError(
                    f"the node at {wanted.endpoint}, where all meet, is gone: "
                    "continue with the same command and --resume auto on each"
                ) from error
            raise MachineError(
                f"the nodes do not meet at {wanted.endpoint} ({first_line(error)}): pass the same "
                "--rdzv-endpoint on each, a port of the first that the others reach"
            ) from error
        except ChildFailedError as failure:
            rank, first = failure.get_first_failure()
            raise _reported(Path(folder)) or _unreported(rank, first.exitcode, wanted) from None
        except SignalException as stopped:
            for number, handler in handlers.items():  # the agent took them
                signal.signal(number, handler)
            is_ours = stopped.sigval in (signal.SIGINT, signal.SIGTERM)
            signal.raise_signal(stopped.sigval if is_ours else signal.SIGTERM)
            # Still here: that signal is ignored, and the run is not done all the same.
            raise MachineError(
                f"stopped by {stopped.sigval.name}: continue with --resume auto"
            ) from None
        finally:
            del os.environ[OUTCOME]


def work(body: Callable[[], None]) -> int:
    """Run `body` in a process that `launch` started; leave an error to the launcher.

    A lost peer is none: then all processes start again.
    """
    from zoo.command import describe

    folder = Path(os.environ[OUTCOME])
    if any(folder.glob("*.json")):  # reported before this restart
        return 1
    (folder / f"{os.environ['RANK']}.{BEGAN}").touch()
    signal.signal(signal.SIGTERM, _exit)
    _end_with_launcher()
    try:
        body()
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except PeerLost:
        return 1
    except ZooError as error:
        code, text = error.exit_code, str(error)
    except OSError as error:
        code, text = 1, describe(error)
    write_json(folder / f"{os.environ['RANK']}.json", {"code": code, "message": text})
    return code


def _stopping() -> list[signal.Signals]:
    """The signals that end a run which is not told to ignore them; a system may lack some."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _end_with_launcher() -> None:
    """Have this process told to end when its launcher does, however that ends; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _reported(folder: Path) -> ZooError | None:
    """The error of the first process, or of the next one that has any."""
    files = sorted(folder.glob("*.json"), key=lambda file: int(file.stem))
    if not files:
        return None
    outcome = read_json(files[0])
    kind = MachineError if outcome["code"] == MachineError.exit_code else ZooError
    return kind(outcome["message"])


def _unreported(rank: int, code: int, wanted: Launch) -> MachineError:
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return MachineError(
        f"process {rank} ended with {how}, after {wanted.max_restarts} restarts: "
        "continue with --resume auto"
    )
