"""`glipv2 prepare`: any data as sharded, randomly accessible records, checked while they are written."""
import argparse
import fcntl
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import tensorflow_datasets as tfds

from glipv2_jax import data_arguments
from glipv2_jax.files import write_whole
from glipv2_jax.metrics import Progress
from glipv2_jax.prepare.shards import SKIPPED, WORK, Shards
from input_pipeline import records
from input_pipeline.registry import PATHS, make_source

_USAGE = """glipv2 prepare DATA [--images=FOLDER] --output=DIR --shards=N …       files and folders as in `glipv2 inspect`
       glipv2 prepare --format=KIND --OPTION=VALUE … --output=DIR --shards=N  any reader with its options
       glipv2 prepare --verify --output=DIR                                   compares all bytes with the card"""


def main(argv=None):
    """Entry point. Exits with a message for data that cannot be prepared; what was finished stays."""
    args, spec = _arguments(argv)
    jax.config.update("jax_platforms", "cpu")                  # an accelerator beside this is left to others
    from glipv2_jax.main import set_up_logging
    set_up_logging()
    try:
        if args.verify:
            count = len(records.read_card(args.output)["shards"])
            with Progress("verify", count, unit="shards") as progress:
                records.verify(args.output, progress.advance)
            print(f"{args.output}: all {count} shards are as they were written")
        else:
            run(spec, args.output, shards=args.shards, workers=args.workers, part=args.part, max_bad=args.max_bad,
                licence=args.licence, root=args.root)
    except (ValueError, OSError) as error:
        sys.exit(f"glipv2 prepare: {error}")


def run(spec, output, *, shards, workers=None, part=(0, 1), max_bad=0, licence=None, root=""):
    """Prepares a source; the last part to finish writes the card.

    Args:
      spec: description of a source, see `registry.make_source`. root: what its relative paths start from.
      output: folder. shards: how many files.
      workers: threads; None: one per processor.
      part: (i, n): only every n-th shard from the i-th, where n machines share the work and the folder.
      max_bad: records that may be left out. licence: for the card.
    Raises: ValueError for bad data, or a folder that holds other data.
    """
    prepare(lambda: make_source(spec, root), spec, source_files(spec, root), output, shards=shards, workers=workers, part=part,
            max_bad=max_bad, licence=licence)


def prepare(open_source, spec, files, output, *, shards, workers=None, part=(0, 1), max_bad=0, licence=None):
    """The same for any source.

    Args:
      open_source: function that gives it; not called where nothing is left to do.
      spec: JSON-able dict that describes it, for the card. files: [(name, paths)] of what it was made from.
      The rest as of `run`.
    Raises: as `run`.
    """
    output = pathlib.Path(output)
    key = json.loads(json.dumps({"source": spec, "files": stamps(files), "shards": shards, "layout": records.LAYOUT}))
    if (output / records.CARD).exists():
        found = records.read_card(output)["key"]
        if found != key:
            raise ValueError(f"{output}: holds other data, or was made with other options: {json.dumps(found)}; expected "
                             f"{json.dumps(key)}; name another folder")
        print(f"{output}: prepared before, nothing to do")
        return
    source = open_source()
    work = Shards(source, output, count=shards, key=key, max_bad=max_bad)
    work.write(range(part[0], shards, part[1]), workers or os.cpu_count() or 1)
    with (output / ".lock").open("w") as lock:                 # parts may finish at the same moment; one writes the card
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (output / records.CARD).exists():
            print(f"{output}: all {shards} shards are finished, another part has written the card")
            return
        missing = work.missing()
        if missing:
            print(f"{output}: {shards - len(missing)} of {shards} shards are finished; the part that finishes the last one "
                  "writes the card")
            return
        card = _finish(work, source, spec, files, key, licence)
    numbers = ", ".join(f"{card[name]:,} {name}" for name in ("records", "images", "boxes", "phrases") if card[name])
    print(f"{output}: {numbers}, in {shards} shard{'s' * (shards > 1)} of {sum(s['bytes'] for s in card['shards']):,} bytes"
          + (f"; {card['skipped']:,} bad records left out, see {SKIPPED}" if card["skipped"] else ""))


def _finish(work, source, spec, files, key, licence):
    """The card, after it and all that lies beside the shards is written; it comes last, as it says that all is there."""
    told = [work.told(shard) for shard in range(work.count)]
    if not any(shard["records"] for shard in told):
        raise ValueError(f"{work.folder}: found no record that can be used among {len(source)}; delete the folder to try again")
    arrays = [work.arrays(shard) for shard in range(work.count)]
    partial = work.folder / f".{records.SIZES}"
    with partial.open("wb") as file:
        np.save(file, np.concatenate([found["sizes"] for found in arrays]))
    partial.replace(work.folder / records.SIZES)
    skipped = [entry for shard in told for entry in shard["skipped"]]
    if skipped:
        write_whole(work.folder / SKIPPED, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped))
    template = tfds.core.ShardedFileTemplate(
        data_dir=work.folder, dataset_name=records.DATASET, split=records.SPLIT, filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    split = tfds.core.SplitInfo(name=records.SPLIT, shard_lengths=[shard["records"] for shard in told],
                                num_bytes=sum(shard["bytes"] for shard in told), filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=work.folder, features=records.features(), split_infos=[split],
                                       description=f"{source.name}, prepared for GLIPv2", check_data=False)
    counts = {name: sum(shard["counts"].get(name, 0) for shard in told)
              for name in ("boxes", "captions", "phrases", "masks", "questions")}
    classes = np.sum([shard["classes"] for shard in told], axis=0).astype(int).tolist()
    card = {
        **records.description(source), "name": source.name, "licence": licence or _stated_licence(files),
        "records": sum(shard["records"] for shard in told),
        "images": len(np.unique(np.concatenate([found["images"] for found in arrays]))),
        **counts, "skipped": len(skipped), "class_boxes": classes, "source": spec,
        "files": [{"file": name, "bytes": _stamp(paths)[0], "sha256": records.sha256(*paths)} for name, paths in files],
        "shards": [{name: shard[name] for name in ("file", "records", "bytes", "sha256")} for shard in told], "key": key}
    write_whole(work.folder / records.CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(work.folder / WORK)
    (work.folder / ".lock").unlink()
    return card


def source_files(spec, root):
    """[(name, paths)] of the annotation files that a source names: those of a .yaml too, a folder's under one name."""
    found = []
    for name in (spec[key] for key in PATHS if spec.get(key)):
        path = pathlib.Path(root, name)
        if path.is_file():
            found.append((name, [path]))
            if path.suffix in (".yaml", ".yml"):
                from input_pipeline.tsv import read_yaml
                found += [(part.name, [part]) for part in read_yaml(path).values() if part.is_file()]
    if spec.get("folder"):
        folder = pathlib.Path(root, spec["folder"])
        for part in ("*.json", "Annotations/**/*.xml", "ImageSets/**/*.txt"):
            paths = sorted(folder.glob(part))
            if paths:
                found.append((f"{spec['folder']}/{part}", paths))
    return found


def stamps(files):
    """[[name, bytes, time of the last change]] of `source_files`: cheap to tell again at every start, unlike hashes."""
    return [[name, *_stamp(paths)] for name, paths in files]


def _stamp(paths):
    """(bytes of all, time of the last change in ns): other data is told from these without reading it."""
    stats = [path.stat() for path in paths]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def _stated_licence(files):
    """What a COCO file says under "licenses", else None."""
    for path in (path for _, paths in files for path in paths):
        if path.suffix == ".json":
            content = data_arguments.load_json(path)
            stated = content.get("licenses") if isinstance(content, dict) else None
            if isinstance(stated, list):
                names = [str(one.get("name")) for one in stated if isinstance(one, dict) and one.get("name")]
                if names:
                    return "; ".join(dict.fromkeys(names))
    return None


def _arguments(argv):
    parser = argparse.ArgumentParser("glipv2 prepare", usage=_USAGE, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     description=__doc__.split(": ", 1)[1])
    parser.add_argument("data", nargs="?", metavar="DATA", help="file or folder; its content says what it is")
    data_arguments.add_options(parser)
    parser.add_argument("--root", default="", help="what relative paths start from")
    parser.add_argument("--output", required=True, help="folder of the shards; the same folder goes on where it was stopped")
    parser.add_argument("--shards", type=int, default=1, help="files; some hundred megabytes each are handy")
    parser.add_argument("--workers", type=int, help="shards written at a time; default: a worker per processor")
    parser.add_argument("--part", type=_part, default=(0, 1), metavar="I/N", help="on machine I of N, counted from 0, that "
                        "share the folder")
    parser.add_argument("--max_bad", type=int, default=0, help="bad records to leave out before it stops")
    parser.add_argument("--licence", help="for the card; default: what the annotation file says")
    parser.add_argument("--verify", action="store_true", help="only compare a prepared folder with its card")
    args, rest = data_arguments.split_options(parser, sys.argv[1:] if argv is None else argv)
    if args.verify:
        return args, None
    if (args.data is None) == (args.format is None):
        parser.error("expected one of DATA and --format")
    if args.max_bad < 0 or (args.workers is not None and args.workers < 1):
        parser.error("--max_bad: expected 0 or more, --workers: 1 or more")
    try:
        return args, data_arguments.spec_of_options(args.data, args, rest)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _part(text):
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 0 to N − 1, for example 0/4")
    return int(part), int(parts)
