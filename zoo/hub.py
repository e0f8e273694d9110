"""Files of a Hub repository at one commit, through the Hub's own client and cache."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import MachineError, ZooError, first_line


@dataclass(frozen=True, slots=True)
class Place:
    """A repository as it was at one commit."""

    repo: str  # OWNER/NAME
    commit: str  # 40 hexadecimal digits

    def __str__(self) -> str:
        return f"hub:{self.repo}@{self.commit[:12]}..."


def parse(text: str) -> Place:
    """Read hub:OWNER/REPO@COMMIT.

    Raises:
        ZooError: it is not of this form, or names no commit.
    """
    parts = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)@([0-9a-f]{40})", text)
    if parts is None:
        raise ZooError(
            f"{text!r} is no pinned place: write hub:OWNER/REPO@COMMIT with the 40 hexadecimal "
            "digits of the commit; a branch or tag may hold other files tomorrow"
        )
    return Place(*parts.groups())


def newest(repo: str, name: str, *, most_bytes: int) -> tuple[Path, str]:
    """The newest version of a file, and its commit; `cached` finds it later.

    Raises:
        ZooError: the repository or the file does not exist, or the file is larger than
            `most_bytes`.
        MachineError: the Hub cannot be reached, or the transfer was cut.
    """
    import huggingface_hub

    what = f"{name} of {repo}"
    _ask(what, repo, name, revision=None, most_bytes=most_bytes)
    with _one_line_errors(what):
        return _with_commit(huggingface_hub.hf_hub_download(repo, name))


def cached(repo: str, name: str) -> tuple[Path, str] | None:
    """The version of a file that was the newest when it was fetched, and its commit."""
    import huggingface_hub

    file = huggingface_hub.try_to_load_from_cache(repo, name)
    return _with_commit(file) if isinstance(file, str) else None


def fetch(place: Place, name: str, *, most_bytes: int) -> Path:
    """One file of a repository, from the Hub's cache or else over the network.

    Raises:
        ZooError: the repository, the commit or the file does not exist, or the file is larger
            than `most_bytes`.
        MachineError: the Hub cannot be reached, or the transfer was cut.

    Note:
        On a terminal the client shows its own progress bar.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(place.repo, name, revision=place.commit)
    if isinstance(cached, str):
        return Path(cached)
    what = f"{name} of {place}"
    commit = _ask(what, place.repo, name, revision=place.commit, most_bytes=most_bytes)
    if commit != place.commit:
        raise ZooError(f"{what}: the Hub answered for another commit, {commit}")
    with _one_line_errors(what):
        return Path(huggingface_hub.hf_hub_download(place.repo, name, revision=place.commit))


def _ask(what: str, repo: str, name: str, *, revision: str | None, most_bytes: int) -> str | None:
    """The commit of a file that is not too large.

    Asked before any download: without a network this fails at once, where the download would try
    for half a minute.
    """
    import huggingface_hub

    with _one_line_errors(what):
        url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
        facts = huggingface_hub.get_hf_file_metadata(url)
    if facts.size is None or facts.size > most_bytes:
        raise ZooError(f"{what} has {facts.size} bytes, expected were {most_bytes} at most")
    return facts.commit_hash


def _with_commit(file: str) -> tuple[Path, str]:
    path = Path(file)
    return path, path.parent.name  # <cache>/<repository>/snapshots/<commit>/<file>


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise ZooError(f"{what}: the repository has no such commit") from None
    except errors.RepositoryNotFoundError:
        raise ZooError(f"{what}: there is no such repository, or none for you") from None
    except errors.RemoteEntryNotFoundError:
        raise ZooError(f"{what}: the repository has no such file at this commit") from None
    except Exception as reason:  # a lost connection has the classes of the client's own transport
        raise MachineError(
            f"{what} cannot be downloaded ({first_line(reason)}): connect to the network, or put "
            "the files into a folder and name that in its place"
        ) from reason
