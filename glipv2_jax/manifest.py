"""Sums of every file of a checkpoint: Orbax stores arrays without any, and a flipped bit would come back as another number.

The file is that of the program sha256sum: `cd checkpoints/2500 && sha256sum -c manifest.sha256` checks it too.
"""
import concurrent.futures
import functools
import hashlib
import pathlib

from glipv2_jax.files import write_whole

NAME = "manifest.sha256"


def write(directory):
    """Writes the sums of all files below a folder into its manifest.

    Raises: OSError where files cannot be read or the manifest cannot be written.
    """
    directory = pathlib.Path(directory)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != NAME)
    lines = (f"{found}  {path.relative_to(directory).as_posix()}\n" for path, found in zip(files, _sums(files)))
    write_whole(directory / NAME, "".join(lines))


def problems(directory):
    """What does not agree with the manifest of a folder.

    Returns: list of "file: what is wrong", empty where every file that it names is as it was; None without a manifest.
    """
    directory = pathlib.Path(directory)
    try:
        text = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return None
    try:
        stored = dict(reversed(line.split("  ", 1)) for line in text.decode().splitlines())
    except (UnicodeDecodeError, ValueError):
        stored = {}
    if not stored:
        return [f"{NAME}: found no sums, expected lines of a sum and a file"]
    found = dict(zip(stored, _sums([directory / name for name in stored])))
    return [f"{name}: another sum than in {NAME}" if found[name] else f"{name}: missing"
            for name, expected in stored.items() if found[name] != expected]


def _sums(files):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:         # hashing lets other threads run
        return list(pool.map(_sum, files))


def _sum(path):
    try:
        about = path.stat()
        return _sum_of(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    except FileNotFoundError:
        return None


@functools.lru_cache(maxsize=4096)      # description, parameters and averages of a checkpoint are read by separate calls
def _sum_of(path, *unchanged):
    del unchanged
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
