"""A source written as shards: in parallel, resumable, the same bytes whatever the number of workers."""
import collections
import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import threading

import numpy as np

from glipv2_jax.files import write_whole
from glipv2_jax.metrics import Progress
from input_pipeline import records

log = logging.getLogger(__name__)

WORK = ".unfinished"                 # folder of what finished shards say, until the card holds it
SKIPPED = "skipped.jsonl"
# `group_size:1` lets a record be read alone; images are compressed already.
_OPTIONS = "group_size:1,uncompressed"


class Shards:
    """The shards of one source in one folder.

    Shard s of S holds the records from s·n/S to (s + 1)·n/S. Each is written beside its place and renamed when it is whole,
    so a run that was killed goes on with those that are missing.

    Args:
      source: see `schema.py`.
      folder: where they go; made when missing.
      count: S.
      key: what tells this data from other data: a folder with shards of another key is refused.
      max_bad: records that may fail to be read on this machine; they are left out and listed in `skipped.jsonl`.
    Raises: ValueError for more shards than records, or a folder that holds something else.
    """

    def __init__(self, source, folder, *, count, key, max_bad=0):
        if not 1 <= count <= len(source):
            raise ValueError(f"--shards: found {count}, expected 1 to {len(source)}, the number of records")
        self.source, self.folder, self.count = source, pathlib.Path(folder), count
        self._max_bad, self._bad, self._lock = max_bad, 0, threading.Lock()
        self._stopped = threading.Event()
        self._work = self.folder / WORK
        self._work.mkdir(parents=True, exist_ok=True)
        stamp = self._work / "key.json"
        if stamp.exists() and json.loads(stamp.read_text()) != key:
            raise ValueError(f"{folder}: found an unfinished preparation of other data or with other options: "
                             f"{stamp.read_text()}; expected {json.dumps(key)}; delete the folder to start anew")
        if not stamp.exists():
            write_whole(stamp, json.dumps(key))

    def file(self, shard: int) -> pathlib.Path:
        """Path of a shard."""
        return self.folder / f"{records.DATASET}-{records.SPLIT}.array_record-{shard:05d}-of-{self.count:05d}"

    def missing(self) -> list[int]:
        """Shards that are not finished."""
        return [shard for shard in range(self.count) if self.told(shard) is None]

    def told(self, shard: int) -> dict | None:
        """What a finished shard says of itself; None for another."""
        path = self._work / f"{shard:05d}.json"
        if not path.exists():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        file = self.file(shard)
        return told if file.exists() and file.stat().st_size == told["bytes"] else None

    def arrays(self, shard: int) -> dict:
        """`sizes` int32 [n, 2] and `images`, uint64 [n] hashes of the image files, of a finished shard."""
        with np.load(self._work / f"{shard:05d}.npz") as arrays:
            return dict(arrays)

    def write(self, wanted, workers: int):
        """Writes the missing ones of the shards `wanted`, a shard per worker at a time.

        Raises: ValueError for the first bad record beyond the budget; shards that were finished stay.
        """
        todo = [shard for shard in self.missing() if shard in wanted]
        self._bad = sum(len(told["skipped"]) for told in map(self.told, range(self.count)) if told)
        total = sum(len(self._range(shard)) for shard in wanted)
        done = total - sum(len(self._range(shard)) for shard in todo)
        with Progress("prepare", total, unit="records", done=done) as progress, \
                concurrent.futures.ThreadPoolExecutor(workers) as pool:
            def advance():
                with self._lock:
                    progress.advance()
            waiting = [pool.submit(self._write, shard, advance) for shard in todo]
            try:
                for finished in concurrent.futures.as_completed(waiting):
                    finished.result()
            except BaseException:
                self._stopped.set()                            # the other workers leave at their next record
                pool.shutdown(cancel_futures=True)
                raise

    def _range(self, shard):
        return range(shard * len(self.source) // self.count, (shard + 1) * len(self.source) // self.count)

    def _write(self, shard, advance):
        from array_record.python.array_record_module import ArrayRecordWriter
        file, counts = self.file(shard), collections.Counter()
        classes = np.zeros(len(self.source.class_names), np.int64)
        sizes, images, skipped = [], [], []
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        writer = ArrayRecordWriter(str(partial), _OPTIONS)
        try:
            for index in self._range(shard):
                if self._stopped.is_set():
                    return
                try:
                    record, image, size = records.complete(self.source, index)
                except Exception as error:  # noqa: BLE001 – a reader may raise anything on broken data
                    skipped.append(self._skip(index, error))
                    advance()
                    continue
                name = self.source.file_name(index) if hasattr(self.source, "file_name") else ""
                writer.write(records.serialize(record, image, size, name))
                sizes.append(size)
                images.append(int.from_bytes(hashlib.blake2b(image, digest_size=8).digest()))
                _count(counts, classes, record)
                advance()
        finally:
            writer.close()
        told = {"file": file.name, "records": len(sizes), "bytes": partial.stat().st_size,
                "sha256": records.sha256(partial), "skipped": skipped, "counts": counts, "classes": classes.tolist()}
        partial.replace(file)
        arrays = self._work / f".{shard:05d}.npz"
        np.savez(arrays, sizes=np.array(sizes, np.int32).reshape(-1, 2), images=np.array(images, np.uint64))
        arrays.replace(self._work / f"{shard:05d}.npz")
        write_whole(self._work / f"{shard:05d}.json", json.dumps(told))

    def _skip(self, index, error):
        with self._lock:
            self._bad += 1
            if self._bad > self._max_bad:
                raise ValueError(f"record {index}: {error}\n{self._bad} bad records, expected at most {self._max_bad} "
                                 "(--max_bad); `glipv2 inspect` lists all of them") from error
        log.warning("record %d left out: %s", index, error)
        return {"record": index, "error": f"{type(error).__name__}: {error}"}


def _count(counts, classes, record):
    boxes = len(record["boxes"])
    counts.update(boxes=boxes, captions="caption" in record, questions=len(record.get("questions", ())),
                  phrases=sum(map(len, record.get("spans", ()))), masks=len(record.get("masks", ())))
    if "caption" not in record:
        classes += np.bincount(record["classes"], minlength=len(classes))
