"""`glipv2 pseudo-label`: image-text pairs with the boxes and masks that a model finds for the noun phrases of their texts."""
import argparse
import json
import logging
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from glipv2_jax import data_arguments, processes, sharding
from glipv2_jax.files import locked, write_whole
from input_pipeline import BadRecords

log = logging.getLogger("glipv2_jax")

CARD, SHEET, RECORDS, WORK = "pseudo_labels.json", "sheet.html", "records", ".unfinished"

_USAGE = """glipv2 pseudo-label --checkpoint=DIR --pairs=FILE [--images=FOLDER] --output=DIR …       lines of {image, caption}, captions
                                                          of COCO, a .yaml of TSVs, or a folder of glipv2 prepare
       glipv2 pseudo-label --checkpoint=DIR --format=KIND --OPTION=VALUE … --output=DIR …   any reader of captions with its options"""


def main(argv=None):
    """Entry point. Exits with a message for pairs or checkpoints that cannot be used; what was finished stays."""
    args, spec, settings = _arguments(argv)
    try:
        processes.join(args.coordinator, args.num_processes, args.process_id)
    except ValueError as error:
        sys.exit(f"glipv2 pseudo-label: {error}")
    from glipv2_jax.main import set_up_compilation_cache, set_up_logging
    set_up_logging()
    set_up_compilation_cache()
    with processes.failing_together():
        try:
            run(spec, args.checkpoint, args.output, root=args.root, threshold=args.threshold, min_boxes=args.min_boxes,
                max_bad=args.max_bad, shards=args.shards, workers=args.workers, ema=args.ema, settings=settings,
                samples=args.samples)
        except (ValueError, OSError) as error:
            if jax.process_count() > 1:
                raise
            sys.exit("\n".join([f"glipv2 pseudo-label: {error}", *getattr(error, "__notes__", [])]))


def run(spec, checkpoint, output, *, root="", threshold=0.5, min_boxes=1, max_bad=0, shards=1, workers=None, ema=False,
        settings=None, samples=24):
    """Labels the pairs of a source; the same call after a stop goes on after the last part.

    Every process of a run of several makes the same call, with a folder that all share.

    Args:
      spec, root: description of a source of captions, see `registry.make_source`.
      checkpoint: folder that training or `glipv2 convert` wrote. ema: take the averaged parameters.
      output: folder.
      threshold: least score of a box, the square root of phrase probability × centerness.
      min_boxes: pairs with fewer boxes are left out; 0: none is.
      max_bad: pairs that each process may fail to read.
      shards: files of records; 0: none. workers: threads that write them; None: one per processor.
      settings: fields of `config.eval` to replace; masks=False writes none where the model has a mask head.
      samples: pairs on the sheet.
    Raises: ValueError for pairs that cannot be read, beyond `max_bad`, for a folder that holds other labels, for views beside
      masks, and where no pair has enough boxes; FileNotFoundError without a checkpoint.
    """
    from glipv2_jax.build import abstract_params, build
    from glipv2_jax.checkpoint import load_params
    from glipv2_jax.evaluation.command import config_of
    from glipv2_jax.predictor import Predictor
    from glipv2_jax.prepare.command import prepare, source_files, stamps
    from glipv2_jax.pseudo_labels import labels
    from glipv2_jax.pseudo_labels.pairs import open_pairs
    output = pathlib.Path(output)
    source, files = open_pairs(spec, root), source_files(spec, root)
    config = config_of(checkpoint, (settings or {}) | {"ema": ema})
    config.train.batch_size = config.eval.batch_size                       # nothing is trained
    # A box whose phrase is less probable cannot reach the threshold, whatever its centerness.
    config.eval.score_threshold = min(config.eval.score_threshold, threshold**2)
    mesh, tokenizer, model = build(config)
    with locked(output), sharding.use(mesh, config.mesh.rules):
        predictor = Predictor(model, mesh, config.eval)
        predictor.params = load_params(checkpoint, abstract_params(mesh, model, config), ema=ema)
        weights = predictor.fingerprint()
        key = {"pairs": spec, "files": stamps(files), "weights": weights, "threshold": threshold, "min_boxes": min_boxes,
               "shards": shards, "settings": config.eval.to_dict(), "max_tokens": config.data.max_tokens,
               "max_phrases": config.data.max_boxes}
        if _claimed(output, json.loads(json.dumps(key))):
            if jax.process_index() == 0:
                print(f"{output}: labelled before, nothing to do")
            return
        _together("claimed")
        started = time.perf_counter()
        if not (output / labels.LABELS).exists():
            _label(predictor, mesh, config, source, tokenizer, output, max_bad, weights, threshold, min_boxes)
        seconds = time.perf_counter() - started
    _together("labelled")
    if not (output / labels.LABELS).stat().st_size:
        raise ValueError(f"{output}: found no pair with {min_boxes} boxes of a score of at least {threshold}; "
                         f"{labels.LEFT_OUT} has the reason of each. Delete the folder to try other options")
    labelled = labels.Labelled(output / labels.LABELS, source)
    shards = min(shards, len(labelled))
    if jax.process_index() < shards:
        about = {"kind": "pseudo_labels", "pairs": spec, "weights": weights, "threshold": threshold, "min_boxes": min_boxes}
        prepare(lambda: labelled, about, [(labels.LABELS, [output / labels.LABELS]), *files], output / RECORDS, shards=shards,
                workers=workers, part=(jax.process_index(), jax.process_count()))
    _together("written")
    if jax.process_index() == 0:
        _finish(output, source, labelled, key, seconds, samples)


def _claimed(output, key):
    """Whether a folder is finished. Process 0 marks an empty one as ours. Raises: ValueError for one of other labels."""
    for path, what in ((output / CARD, "the labels"), (output / WORK / "key.json", "unfinished labels")):
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found["key"] if path.name == CARD else found
            other = [f"{name}: {found.get(name)!r}, expected {key[name]!r}" for name in key if found.get(name) != key[name]]
            if other and path.name != CARD and not any((output / WORK).glob("parts/**/part-*.npz")):
                if jax.process_index() == 0:                   # no pair was labelled yet: nothing is lost
                    shutil.rmtree(output / WORK)
                break
            if other:
                raise ValueError(f"{output}: found {what} of another run. {'; '.join(other)}. Name another folder, or delete it")
            return path.name == CARD
    if jax.process_index() == 0:
        write_whole(output / WORK / "key.json", json.dumps(key))
    return False


def _label(predictor, mesh, config, source, tokenizer, output, max_bad, weights, threshold, min_boxes):
    """Everything up to `labels.jsonl`."""
    from glipv2_jax.evaluation import inference
    from glipv2_jax.pseudo_labels import labels
    from glipv2_jax.pseudo_labels.pairs import PhrasedPairs, image_sizes
    bad = BadRecords(max_bad, "--max_bad", "left out")
    sizes = output / WORK / "sizes.npy"
    # Process 0 alone asks for them, once: the parts of all processes, and of a run that goes on, have to be the same.
    if jax.process_index() == 0 and not sizes.exists():
        partial = sizes.with_name(".sizes.npy")
        with partial.open("wb") as file:
            np.save(file, image_sizes(source, lambda index, error: bad.add(0, index, error)))
        partial.replace(sizes)
    _together("sizes")
    pairs = PhrasedPairs(source, np.load(sizes))
    if not len(pairs):
        raise ValueError(f"{source.name}: found no image that can be opened among {len(source)} pairs")
    parts = inference.detect(
        predictor, mesh, config, pairs, tokenizer, output / WORK / "parts", f"pseudo-label {source.name}",
        {"weights": weights, "threshold": threshold}, chosen=lambda found: found.only(found.scores >= threshold),
        on_bad=lambda index, error: bad.add(0, int(pairs.places[index]), error))
    if jax.process_index() == 0:
        labels.write(output, pairs, parts, threshold=threshold, min_boxes=min_boxes)


def _finish(output, source, labelled, key, seconds, samples):
    """The sheet and, last of all, the card, which says that all is there."""
    from glipv2_jax.pseudo_labels import labels, sheet
    summary = labels.Summary.of(output)
    card = {"name": source.name, "pairs": len(source), "labelled": summary.labelled, "boxes": summary.boxes, "masks": summary.masks,
            "phrases": len(summary.phrases), "left_out": dict(summary.left_out), "threshold": key["threshold"],
            "min_boxes": key["min_boxes"], "weights": key["weights"], "seconds_of_the_last_run": round(seconds, 1),
            "mean_quality": round(float(summary.quality.mean()), 4), "scores": summary.scores.tolist(),
            "boxes_of_pair": {str(n): summary.boxes_of_pair[n] for n in sorted(summary.boxes_of_pair)}, "key": key}
    write_whole(output / SHEET, sheet.page(card, summary, labelled, samples))
    write_whole(output / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(output / WORK)
    left_out = "".join(f"; {number:,} left out: {reason}" for reason, number in summary.left_out.most_common())
    print(f"{output}: {summary.boxes:,} boxes of {len(summary.phrases):,} phrases for {summary.labelled:,} of {len(source):,} pairs"
          f"{left_out}. Look at {output / SHEET}")


def _together(what):
    """All processes of the run have come so far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _arguments(argv):
    parser = argparse.ArgumentParser("glipv2 pseudo-label", usage=_USAGE, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     description=__doc__.split(": ", 1)[1],
                                     epilog="--config.eval.x=… replaces a setting of the checkpoint.")
    parser.add_argument("--checkpoint", required=True, help="folder that training or glipv2 convert wrote")
    parser.add_argument("--pairs", metavar="FILE", help="file or folder; its content says what it is")
    data_arguments.add_options(parser)
    parser.add_argument("--root", default="", help="what relative paths start from")
    parser.add_argument("--output", required=True, help="folder of the labels; the same one goes on after a stop")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of a box")
    parser.add_argument("--min_boxes", type=int, default=1, help="leave out pairs with fewer boxes; 0: leave out none")
    parser.add_argument("--max_bad", type=int, default=0, help="pairs that cannot be read and are left out before it stops")
    parser.add_argument("--shards", type=int, default=1, help="files of records; 0: none, labels.jsonl alone")
    parser.add_argument("--workers", type=int, help="shards written at a time; default: a worker per processor")
    parser.add_argument("--samples", type=int, default=24, help="pairs drawn on the sheet")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    parser.add_argument("--coordinator", default="auto", help="several processes as one run: address:port of the first; auto: as the "
                        "cluster says, alone elsewhere")
    parser.add_argument("--num_processes", type=int, help="of the run, with --coordinator=address:port")
    parser.add_argument("--process_id", type=int, help="of this process, from 0, with --coordinator=address:port")
    args, rest = data_arguments.split_options(parser, sys.argv[1:] if argv is None else argv)
    if (args.pairs is None) == (args.format is None):
        parser.error("expected one of --pairs and --format")
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold: found {args.threshold}, expected 0 to 1")
    for name, least in (("min_boxes", 0), ("max_bad", 0), ("shards", 0), ("samples", 0), ("workers", 1)):
        found = getattr(args, name)
        if found is not None and found < least:
            parser.error(f"--{name}: found {found}, expected {least} or more")
    try:
        fields = [flag for flag in rest if flag.startswith("--config.eval.")]
        settings = dict(data_arguments.option(flag.replace("--config.eval.", "--", 1)) for flag in fields)
        spec = data_arguments.spec_of_options(args.pairs, args, [flag for flag in rest if flag not in fields])
        return args, spec, settings
    except (ValueError, OSError) as error:
        parser.error(str(error))
