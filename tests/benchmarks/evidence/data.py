"""Find CIFAR-100 in the folders given: decoded arrays, or its two archives with their script."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.data_formats import holds
from zoo.data_sources import LAYOUTS
from zoo.errors import MachineError, ZooError
from zoo.files import atomic_file

ARCHIVES = ("cifar100-webp-0.zip", "cifar100-webp-1.zip")
SCRIPT, CHECKSUMS = "unpack.py", "checksums.json"
UNPACK_S = 300


def prepare(folders: Sequence[Path], work: Path) -> Path | None:
    """The folder that commands can read; None where none is given.

    The archives may come one at a time: what came with an earlier call is kept in `work`.

    Raises:
        ZooError: a folder is missing, holds neither, or the other archive has not come yet.
        MachineError: the archives are damaged.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ZooError(f"the data folder {folder} does not exist: name another with --data")
        if holds(folder, LAYOUTS["cifar100"]):
            return folder
    decoded, kept = work / "data", work / "archives"
    if holds(decoded, LAYOUTS["cifar100"]):
        return decoded
    for folder in folders:
        for name in (*ARCHIVES, SCRIPT, CHECKSUMS):
            if (folder / name).is_file() and not (kept / name).is_file():
                with atomic_file(kept / name) as part:
                    shutil.copyfile(folder / name, part)
    missing = [name for name in (*ARCHIVES, SCRIPT, CHECKSUMS) if not (kept / name).is_file()]
    if not folders and missing:
        return None
    if len(missing) == len(ARCHIVES) + 2:
        raise ZooError(
            f"{', '.join(map(str, folders))} holds neither train_images.npy nor {ARCHIVES[0]}: "
            "name the folder of CIFAR-100 with --data"
        )
    if missing:
        raise ZooError(
            f"of the data, {' and '.join(missing)} has not come yet; the rest is kept in {kept}: "
            "call again with its folder as --data"
        )
    _unpack(kept, decoded)
    return decoded


def _unpack(kept: Path, decoded: Path) -> None:
    command = [sys.executable, str(kept / SCRIPT), str(decoded)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=UNPACK_S, check=False)
    if answer.returncode:
        said = [line for line in answer.stderr.splitlines() if line.strip()]
        for name in (*ARCHIVES, SCRIPT, CHECKSUMS):
            (kept / name).unlink()
        raise MachineError(
            f"the data cannot be unpacked ({said[-1] if said else answer.returncode}): "
            "copy both archives again"
        )
    for name in ARCHIVES:  # decoded, they are not needed any more
        (kept / name).unlink()
