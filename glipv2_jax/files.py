"""Files that are there whole or not at all, and folders with one writer."""
import contextlib
import fcntl
import logging
import os
import socket
import threading
from pathlib import Path

log = logging.getLogger(__name__)


def write_whole(path: str | os.PathLike, text: str):
    """Writes a text file in UTF-8; its folder is made.

    Renaming within a folder is atomic: a run killed here leaves the former file, never half of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: str | os.PathLike):
    """Makes a folder and keeps other runs from writing to it, until the end of the `with` or of the process, however it ends.

    Of a run of several processes the first holds the lock.

    Raises: OSError for a folder that cannot be written to, or that another run holds; it says which.
    """
    import jax  # late: everything else here needs no array
    if jax.process_index() > 0:
        yield
        return
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise OSError(f"{folder}: found a folder that cannot be written to ({error.strerror}), expected one that can") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OSError(f"{folder}: another run writes there, {file.read().strip() or 'unknown'}; expected one run for a "
                          "folder. End it, or choose another folder") from None
        except OSError as error:
            log.warning("%s: the file system has no locks (%s); nothing keeps a second run from the same folder", folder, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
