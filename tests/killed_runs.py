"""Trainings that are killed again and again, each a child forked from this process.

`killed_runs.py COMMAND SEED KILLS FOLDER ARGUMENTS...` runs zoo-train or zoo-pretrain below
FOLDER/whole without a kill, then below FOLDER/killed-N with `--resume auto`, killed by SIGKILL at
random moments drawn from SEED until there were KILLS of them and a run is complete, each run in a
folder of its own: killed-1, killed-2... It is saved after every step, and every third kill comes
while a state is written. What each kill interrupted is said on stderr.
"""

import os
import random
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from threading import Thread

import training.saver

# Where `main` of a command is, and what it imports before the forks, which then take milliseconds.
COMMANDS = {
    "zoo-train": ("training.cli", "training.run", "training.event_log"),
    "zoo-pretrain": (
        *("training.pretrain_cli", "training.pretrain"),
        *("lightly.loss", "lightly.models.modules.heads"),
    ),
}
MOST_EVENTS = 250  # accesses to files of the run; a save takes some 25 of them
STATE, STATE_EVENTS = "/state/", 40  # of those, some accesses to the states

Plan = tuple[str, int, float]  # what the path has in it, which such access, and seconds after it


def start(arguments: list[str], runs: Path, plan: Plan | None) -> int:
    """Fork a child that trains, and that kills itself by `plan`."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if plan is not None:
            kill_by(plan, runs)
        code = cli.main([*arguments, "--runs", str(runs)])
    finally:
        os._exit(code)


def kill_by(plan: Plan, runs: Path) -> None:
    """Die before one of the events in which Python opens, makes, renames or removes below `runs`.

    With seconds in the plan, die that long after the event, wherever the process then is.
    """
    part, left, seconds = plan

    def die(where: str) -> None:
        time.sleep(seconds)
        print(f"killed {where}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, given: tuple[object, ...]) -> None:
        nonlocal left
        if any(str(one).startswith(f"{runs}/") and part in str(one) for one in given):
            left -= 1
            if left == 0 and seconds:
                Thread(target=die, args=(f"{seconds:.3f} s later",), daemon=True).start()
            elif left == 0:
                die(f"at {name} {Path(str(given[0])).relative_to(runs)}")

    sys.addaudithook(hook)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    command, seed, kills, folder, *given = sys.argv[1:]
    cli, *_ = [import_module(name) for name in COMMANDS[command]]
    chance, done, run = random.Random(int(seed)), 0, 1
    training.saver.SHARE_OF_TIME = 1e9
    if wait(start(given, Path(folder, "whole"), None)) != 0:
        raise SystemExit("the run without a kill failed")
    while done < int(kills) or run == 1:
        if done % 3 == 0:
            plan = STATE, chance.randint(1, STATE_EVENTS), 0.0
        else:
            later = 0.0 if chance.random() < 0.4 else chance.uniform(0.001, 0.1)
            plan = "", chance.randint(1, MOST_EVENTS), later
        code = wait(start([*given, "--resume", "auto"], Path(folder, f"killed-{run}"), plan))
        if code == 0:
            run += 1
        elif code == -signal.SIGKILL:
            done += 1
        else:
            raise SystemExit(f"exit code {code} after {done} kills")
    while wait(start([*given, "--resume", "auto"], Path(folder, f"killed-{run}"), None)) != 0:
        raise SystemExit("the last run did not end")
