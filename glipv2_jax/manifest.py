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
    path = pathlib.Path(directory) / NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    return list(_problems(path.parent, text))


@functools.lru_cache(maxsize=8)         # state and description of a checkpoint are read by separate calls
def _problems(directory, text):
    try:
        stored = dict(reversed(line.split("  ", 1)) for line in text.decode().splitlines())
    except (UnicodeDecodeError, ValueError):
        stored = {}
    if not stored:
        return (f"{NAME}: found no sums, expected lines of a sum and a file",)
    files = [directory / name for name in stored]
    missing = {path for path in files if not path.is_file()}
    present = [path for path in files if path not in missing]
    found = dict(zip(present, _sums(present)))
    return tuple(f"{name}: missing" if path in missing else f"{name}: another sum than in {NAME}"
                 for path, (name, expected) in zip(files, stored.items()) if found.get(path) != expected)


def _sums(files):
    def one(path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:         # hashing lets other threads run
        return list(pool.map(one, files))
