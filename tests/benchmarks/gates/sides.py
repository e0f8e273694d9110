"""The code of both sides in folders of their own, which nobody edits while it is timed."""

import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from zoo.errors import ZooError

CODE = ("zoo", "training", "export", "profiling", "cifar_zoo.py")


def git(root: Path, *words: str) -> bytes:
    """The output of a git command that changes nothing.

    Raises:
        ZooError: git says no; the message is its own.
    """
    answer = subprocess.run(("git", "-C", str(root), *words), capture_output=True, check=False)
    if answer.returncode:
        lines = answer.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ZooError(f"git {' '.join(words)}: {lines[0]}")
    return answer.stdout


def base_commit(root: Path, name: str) -> str:
    """The commit where the work at hand left `name`: what others did there since is not compared.

    Raises:
        ZooError: there is no such commit, or it has nothing in common with this one.
    """
    try:
        return git(root, "merge-base", name, "HEAD").decode().strip()
    except ZooError as error:
        raise ZooError(f"{name!r} is no commit to compare with: name a branch ({error})") from None


def write_commit(root: Path, commit: str, home: Path) -> None:
    """The code of a commit, in `home`."""
    # As an archive, not as a worktree: nothing is left in the repository if we are killed.
    with tarfile.open(fileobj=BytesIO(git(root, "archive", "--format=tar", commit, *CODE))) as tar:
        tar.extractall(home, filter="data")


def write_tree(root: Path, home: Path) -> None:
    """The code as it lies in the working tree, uncommitted changes included, in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        if (root / name).is_dir():
            shutil.copytree(root / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, home / name)
