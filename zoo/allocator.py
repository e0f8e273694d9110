"""The C library's allocator: memory that is freed stays with the process."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 32 * 2**20  # bytes of a block that is kept: the most that glibc takes
GIVEN_BACK = 128 * 2**10  # bytes of a block with address space of its own: where glibc begins
USERS_OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # beginnings of environment variables

_keeps = False


def keep_memory() -> None:
    """Keep freed blocks of up to LARGEST bytes for the next tensors, from now on.

    glibc gives large blocks back to the system and then takes them again page by page: thousands
    of page faults in a training step, a fifth of its time on two cores. How many depends on what
    else lies on the heap, so that processes of the same program differ by a factor of two.

    Where address space is limited (RLIMIT_AS), blocks from GIVEN_BACK bytes on are given back
    instead: a heap returns only its end, and glibc, which puts larger blocks there with time, then
    has no room for the smaller batch that would fit.

    Nothing changes where the allocator is another one or the user has set it.

    Source:
        mallopt(3).
    """
    global _keeps
    is_users = any(name.startswith(USERS_OWN) for name in os.environ)
    if _keeps or is_users or os.name != "posix":
        return
    import resource

    is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    if is_limited:
        library.mallopt(M_MMAP_THRESHOLD, GIVEN_BACK)
        return
    never = library.mallopt(M_TRIM_THRESHOLD, -1)
    _keeps = bool(never and library.mallopt(M_MMAP_THRESHOLD, LARGEST))


def release_memory() -> None:
    """Give back what was freed up to now, so that the memory of the process is what it uses.

    Source:
        malloc_trim(3).
    """
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)


def keeps_memory() -> bool:
    """Whether `keep_memory` has changed this process."""
    return _keeps
