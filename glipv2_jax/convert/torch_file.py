"""PyTorch's zip format of weights, read and written without PyTorch. Nothing of a file is ever executed.

A file is a zip without compression: `NAME/data.pkl` describes the tensors, `NAME/data/0`, `1`, … hold their
elements.
What does not fit together is refused when the file is opened, before any of it is read into memory.
"""
import os
import pathlib
import re
import zipfile
import zlib

import numpy as np

from glipv2_jax.convert.torch_pickle import read_pickle, write_pickle

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."     # what files before PyTorch 1.6 begin with
_MAX_PICKLE_BYTES = 8 * 2**20     # a checkpoint of GLIP-L with its optimizer needs about one
_MAX_RECORDS = 100_000


class TorchFile:
    """An open file of weights.

    Args:
      path: file.
    Attributes:
      content: what was saved: nested dicts, lists and numbers; a tensor is a `TensorView` (shape, dtype).
    Raises: ValueError for what torch.save does not write, or what could run code or exhaust the memory.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._zip, self._last = _open_zip(self.path), (None, None)
        try:
            self._records = _checked_records(self._zip, self.path.stat().st_size)
            self.content, tensors = read_pickle(self._record("data.pkl", _MAX_PICKLE_BYTES))
            if "byteorder" in self._records and self._record("byteorder", 64) != b"little":
                raise ValueError("found the elements in another byte order than little-endian")
            for tensor in tensors:
                _check_tensor(tensor, self._records)
        except ValueError as error:
            self.close()
            raise ValueError(f"{self.path}: {error}") from error
        except BaseException:
            self.close()
            raise

    def read(self, tensor):
        """Elements of a TensorView of this file: a contiguous numpy array."""
        if 0 in tensor.shape:
            return np.empty(tensor.shape, tensor.dtype)
        if self._last[0] != tensor.storage.key:          # neighbours often share a storage
            self._last = tensor.storage.key, self._record(f"data/{tensor.storage.key}")
        data = self._last[1]
        elements = np.frombuffer(data, tensor.dtype, len(data) // tensor.dtype.itemsize)[tensor.offset:]
        strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(elements, tensor.shape, strides, writeable=False)
        return np.array(view, order="C")

    def close(self):
        self._zip.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _record(self, name, max_bytes=None):
        info = self._records.get(name)
        if info is None:
            raise ValueError(f"found no record {name!r}, expected a zip as torch.save writes it")
        if max_bytes is not None and info.file_size > max_bytes:
            raise ValueError(f"record {name}: found {info.file_size} bytes, expected at most {max_bytes}")
        try:
            data = self._zip.read(info)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError,
                OSError) as error:
            raise ValueError(f"record {name}: {error}; the file is damaged") from error
        if len(data) != info.file_size:
            raise ValueError(f"record {name}: found {len(data)} bytes, expected {info.file_size}; the file "
                             "is damaged")
        return data


def _open_zip(path):
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(_LEGACY):
        raise ValueError(f"{path}: found the pickle format of PyTorch before 1.6, expected its zip format. "
                         "It cannot be read without running what it says. Take a safetensors file of the "
                         "same weights, or, if you trust it, load and save it with PyTorch")
    if not start.startswith(b"PK"):
        kind = ("a pickle" if start[:1] == b"\x80" else "a tar archive" if start[257:262] == b"ustar" else
                "another format")
        raise ValueError(f"{path}: found {kind}, expected a zip as torch.save writes it, or safetensors")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}. The file begins as a zip but is not a whole one: cut short, "
                         "perhaps; compare its size with the original's") from error


def _checked_records(archive, file_bytes):
    """dict of name without the root folder → ZipInfo, of a zip that is what it seems.

    Nothing is ever unpacked to the disk; names that would matter there are refused all the same.
    """
    infos = archive.infolist()
    if len(infos) > _MAX_RECORDS:
        raise ValueError(f"found {len(infos)} records, expected at most {_MAX_RECORDS}")
    roots, records = set(), {}
    for info in infos:
        name = info.orig_filename
        root, _, rest = name.partition("/")
        if not rest or re.search(r"\\|\x00|^/|(^|/)\.\.?(/|$)|//|^[A-Za-z]:", name) or name != info.filename:
            raise ValueError(f"found a record named {name[:80]!r}, expected names like archive/data/0")
        if info.flag_bits & 1:
            raise ValueError(f"record {name}: found it encrypted")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"record {name}: found {info.compress_size} bytes that unpack to "
                             f"{info.file_size}, expected "
                             "no compression")
        if rest in records:
            raise ValueError(f"found two records named {name!r}")
        roots.add(root)
        records[rest] = info
    if len(roots) != 1:
        raise ValueError(f"found {len(roots)} folders at the top of the zip, expected one")
    total = sum(info.file_size for info in infos)
    if total > file_bytes:
        raise ValueError(f"found records of {total} bytes in all, more than the {file_bytes} of the file")
    return records


def _check_tensor(tensor, records):
    """Raises ValueError unless the storage is whole, and the view stays in it and meets no element twice."""
    storage = tensor.storage
    if not re.fullmatch(r"\w{1,64}", storage.key, re.ASCII):
        raise ValueError(f"found a storage named {storage.key[:80]!r}, expected a number")
    info = records.get(f"data/{storage.key}")
    found = -1 if info is None else info.file_size
    expected = storage.numel * (1 if storage.dtype is None else storage.dtype.itemsize)
    if found != expected:
        raise ValueError(f"storage {storage.key}: found {'no record' if info is None else f'{found} bytes'}, "
                         f"expected {expected} bytes for {storage.numel} elements")
    numel = expected // tensor.dtype.itemsize
    reach = 0 if 0 in tensor.shape else 1                # elements from the view's first to its last
    for stride, size in sorted(zip(tensor.strides, tensor.shape)) if reach else ():
        if size > 1:
            if stride < reach:
                raise ValueError(f"storage {storage.key}: found a tensor of shape {tensor.shape} and strides "
                                 f"{tensor.strides}, which meets elements more than once; expected strides "
                                 "that do not overlap")
            reach += stride * (size - 1)
    if tensor.offset + reach > numel:
        raise ValueError(f"storage {storage.key}: found a tensor of shape {tensor.shape}, strides "
                         f"{tensor.strides} and "
                         f"offset {tensor.offset}, which reaches to element {tensor.offset + reach}; the "
                         f"storage has {numel}")


def write_torch(path, tree):
    """Writes what torch.load reads, also with weights_only=True. The same tree always gives the same bytes.

    Args:
      path: file; replaced in one moment when everything is written.
      tree: nested dicts, lists, strings, numbers and numpy arrays.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    pickle, arrays = write_pickle(tree)
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        def write(name, data):
            info = zipfile.ZipInfo(f"archive/{name}")
            with archive.open(info, "w", force_zip64=len(data) >= 2**31) as record:
                record.write(data)
        write("data.pkl", pickle)
        write("byteorder", b"little")
        for number, array in enumerate(arrays):
            write(f"data/{number}", memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
        write("version", b"3\n")
    os.replace(partial, path)
