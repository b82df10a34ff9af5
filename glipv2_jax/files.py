"""Files that are there whole or not at all, and folders with one writer."""
import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path

log = logging.getLogger(__name__)
_SECONDS_TO_SEE = 15                  # until a network's file system shows what another machine has written


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

    Of a run of several processes all make this call; the first holds the lock, and the others have to see what it writes there.

    Raises: OSError for a folder that cannot be written to, that another run holds, or that not all processes share; it says which.
    """
    import jax  # late: everything else here needs no array
    if jax.process_index() > 0:
        _shared(folder, None)
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
        run = uuid.uuid4().hex
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, run {run}\n")
        file.flush()
        if jax.process_count() > 1:
            os.fsync(file.fileno())
            _shared(folder, run)
        yield


def _shared(folder, run):
    """Raises OSError unless all processes find in the lock the run that the first has written there; `run`: its 32 hex digits there."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    run = bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(bytes.fromhex(run or "00" * 16), np.uint8)).tolist()).hex()
    until = time.monotonic() + _SECONDS_TO_SEE
    while not (seen := _read(Path(folder) / ".lock").endswith(f"run {run}\n")) and time.monotonic() < until:
        time.sleep(0.2)
    blind = np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.array(seen))).reshape(-1))
    if len(blind):
        raise OSError(f"{folder}: processes {blind.tolist()} of {jax.process_count()} do not see what process 0 writes there; expected a folder "
                      "that all share, such as one of a file server")


def _read(path):
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
