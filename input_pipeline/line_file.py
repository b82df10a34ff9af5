"""Random access to the lines of a text file that is too large to load."""
import os
import pathlib

import numpy as np

_CHUNK = 2**24


class LineFile:
    """Line i of a file as bytes, without its line end. Only offsets are held: 8 bytes a line.

    Offsets come from `X.lineidx` beside the file, one decimal number a line, as GLIP's TSV files have them; else from a
    pass over the file. Empty lines at the end do not count.

    Args:
      path: the file.
    Raises: ValueError if it cannot be read, or if its .lineidx belongs to another file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        index = self.path.with_suffix(".lineidx")
        try:
            size = self.path.stat().st_size
            starts = _read_index(index) if index.is_file() else _scan(self.path)
        except OSError as error:
            raise ValueError(f"{error.filename}: cannot read the file: {error.strerror}") from error
        if len(starts) and (starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= size):
            raise ValueError(f"{index}: found offsets that are not rising from 0 to below {size}, the size of "
                             f"{self.path.name}; delete the index to have it made anew")
        self._ends = np.append(starts, size).astype(np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: line {index}, expected 0 to {len(self) - 1}")
        begin, end = map(int, self._ends[index:index + 2])
        with self.path.open("rb") as file:         # a handle that is kept would belong to one thread and process
            file.seek(begin)
            line = file.read(end - begin)
        if len(line) != end - begin:
            raise ValueError(f"{self.path}: line {index}: found {len(line)} bytes, expected {end - begin}: the file "
                             "was cut while it was read")
        if b"\n" in line.rstrip(b"\r\n"):
            raise ValueError(f"{self.path}: line {index}: found several lines between two offsets of its .lineidx; "
                             "delete the index to have it made anew")
        return line.rstrip(b"\r\n")


def _read_index(path):
    text = path.read_bytes()
    try:
        return np.array(text.split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}; expected one byte offset a line") from error


def _scan(path):
    """int64 offsets of the lines of a file."""
    starts, begin = [np.zeros(1, np.int64)], 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + begin + 1)
            begin += len(chunk)
        starts = np.concatenate(starts)
        # The end of the last line starts nothing, and neither do empty lines after it.
        while len(starts):
            file.seek(starts[-1])
            if file.read(begin - int(starts[-1])).strip():
                break
            starts, begin = starts[:-1], int(starts[-1])
    return starts
