"""A command as a child of zoo-sweep: python -m training.sweep_child MODULE:FUNCTION ARGUMENTS.

Where the sweep is killed, nothing is left that works on: the child is terminated, and a training
then saves what it has.
"""

import ctypes
import os
import signal
import sys
from pkgutil import resolve_name

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
PARENT = "ZOO_SWEEP_PID"


def main() -> int:
    """Call the function that the first argument names as the console script of it would."""
    function, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ.pop(PARENT)):  # it died before the call
            return 128 + signal.SIGTERM
    sys.argv = [function, *arguments]
    code: int = resolve_name(function)()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
