"""Entry points of the commands: make sure that the packages are ours, then call them.

Our packages have plain names, and a folder named `training` on PYTHONPATH would be imported in
place of ours. This module lies beside our packages, so a package from elsewhere is not ours.
"""

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

PACKAGES = ("zoo", "training", "export", "profiling")
HOME = Path(__file__).resolve().parent


def _call(command: str, target: str, needs: tuple[str, ...] = PACKAGES) -> int:
    complaint = next(filter(None, map(_complaint, needs)), None)
    if complaint:
        print(f"{command}: {complaint}", file=sys.stderr)
        return 2
    try:
        code: int = resolve_name(target)()
    except KeyboardInterrupt:  # while the packages were imported, or the options read
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    return code


def _complaint(package: str) -> str | None:
    """Say why `package` is not ours, without importing it."""
    spec = find_spec(package)
    if spec is None:
        return f"the package {package!r} is missing from {HOME}: run pip install . in a clone again"
    folders = list(spec.submodule_search_locations or ())
    found = Path(folders[0] if folders else spec.origin or package)
    if found.resolve().parent == HOME:
        return None
    return (
        f"the {'folder' if folders else 'file'} {found} shadows cifar-zoo's own package "
        f"{package!r}: run from another folder or rename it"
    )


train = partial(_call, "zoo-train", "training.cli:main")
pretrain = partial(_call, "zoo-pretrain", "training.pretrain_cli:main")
sweep = partial(_call, "zoo-sweep", "training.cli:main_sweep")
export = partial(_call, "zoo-export", "export.cli:main")
evaluate = partial(_call, "zoo-eval", "export.use_cli:main_eval")
predict = partial(_call, "zoo-predict", "export.use_cli:main_predict")
bench = partial(_call, "zoo-bench", "profiling.cli:main")
report = partial(_call, "zoo-report", "profiling.report_cli:main_report")
list_models = partial(_call, "zoo-list", "zoo.cli:main_list", needs=("zoo",))
doctor = partial(_call, "zoo-doctor", "zoo.cli:main_doctor", needs=("zoo",))  # reports on the rest
