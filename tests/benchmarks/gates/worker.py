"""One side of a comparison in a process of its own: prepares hot paths, times blocks of calls.

Reads one JSON request a line from stdin and answers in one line on stdout. It runs with the code
of one side on its path, but with the hot paths of this folder: both sides are asked the same.
"""

import gc
import importlib.util
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

from .hot_paths import Call, HotPath, cpu_seconds, hot_paths


class Side:
    """The hot paths of one side, as far as they were prepared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: dict[str, Call] = {}
        self.paths: dict[str, HotPath] = {path.name: path for path in hot_paths()}

    def prepare(self, name: str) -> dict[str, Any]:
        """Make a path ready, warm it up and check its answer; say why where that cannot be."""
        path = self.paths[name]
        missing = path.missing()
        if missing is not None:
            return {"missing": missing}
        try:
            call = path.prepare(self.folder)
            if not path.is_cold and not path.is_right(call()):
                return {"fault": "the answer is wrong"}
        except Exception as error:  # whatever the code of a side may raise is its own fault
            return {"fault": _one_line(error)}
        self.calls[name] = call
        gc.collect()
        gc.freeze()  # so that a collection before each block has little to look at
        return {}

    def calibrate(self, name: str, block_s: float) -> dict[str, Any]:
        """How many calls fill a block, and how long one takes."""
        call, start, calls = self.calls[name], cpu_seconds(), 0
        while calls == 0 or cpu_seconds() - start < block_s:
            call()
            calls += 1
        call_s = (cpu_seconds() - start) / calls
        return {"calls": math.ceil(block_s / call_s), "call_s": call_s}

    def time(self, name: str, calls: int) -> dict[str, Any]:
        """CPU seconds of one call, over a block of so many."""
        call, answer = self.calls[name], None
        gc.collect()
        gc.disable()
        try:
            start = cpu_seconds()
            for _ in range(calls):
                answer = call()
            spent = cpu_seconds() - start
        except Exception as error:
            return {"fault": _one_line(error)}
        finally:
            gc.enable()
        if not self.paths[name].is_right(answer):
            return {"fault": "the answer is wrong"}
        return {"s": spent / calls}


def main() -> None:
    """Answer until stdin ends."""
    home, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    answers = _answers()
    spec = importlib.util.find_spec("zoo")
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found is None or home not in found.parents:
        raise SystemExit(f"the code to be timed is in {home}, but zoo was found at {found}")
    warnings.simplefilter("ignore")  # of the exporter, about its own parts
    side = Side(folder)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(side, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


def _answers() -> TextIO:
    """Where answers go; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


if __name__ == "__main__":
    main()
