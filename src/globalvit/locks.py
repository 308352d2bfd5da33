"""File locks that end with their process; where the file system has none, work goes on with a warning."""

import errno
import logging
import warnings

from filelock import FileLock

logger = logging.getLogger(__name__)

# How file systems without locks answer, such as some network drives and FUSE.
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK})


def acquire(lock: FileLock, timeout: float) -> None:
    """Acquire a lock, or warn that the file system has no locks.

    Args:
        lock: not held by this process.
        timeout: seconds to wait for another process that holds it.

    Raises:
        filelock.Timeout: another process still holds it.
        OSError: the file cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            # Newer versions of filelock write the owner into the file instead, which works as well, and warn of it.
            warnings.simplefilter("ignore", UserWarning)
            lock.acquire(timeout=timeout)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        logger.warning("%s cannot be locked on this file system; start only one process there", lock.lock_file)
