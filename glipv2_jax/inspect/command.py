"""`glipv2 inspect`: the label doctor. Every record checked, histograms, leaks, and a page of samples as training sees them."""
import argparse
import json
import pathlib
import sys

import jax
from absl import flags
from ml_collections import config_flags

from configs import common
from glipv2_jax import data_arguments
from glipv2_jax.files import write_whole
from glipv2_jax.inspect import leaks, records, sheet, summary
from input_pipeline.annotations import collecting
from input_pipeline.registry import eval_specs, make_source, train_options, train_specs
from input_pipeline.tokenizer import Tokenizer

_USAGE = """glipv2 inspect DATA [--images=FOLDER] …          a COCO, grounding, caption or ODVG file, a VOC folder, a .yaml of TSVs
       glipv2 inspect --format=KIND --OPTION=VALUE …     any reader with its options, e.g. --format=voc --folder=VOC2012 --split=val
       glipv2 inspect --config=configs/x.py …          all sources of a config, and whether evaluation images are trained on"""


def main(argv=None):
    """Entry point. Exits with 1 if anything is bad, and with a message for arguments that cannot work."""
    args, config, flags_of_reader = _arguments(argv)
    jax.config.update("jax_platforms", "cpu")                  # an accelerator beside this is left to others
    from glipv2_jax.main import set_up_logging
    set_up_logging()
    try:
        found = run(args, config, flags_of_reader)
    except (ValueError, OSError) as error:
        sys.exit(f"glipv2 inspect: {error}")
    if found:
        sys.exit(1)


def run(args, config, flags_of_reader):
    """Number of problems. Raises: ValueError for descriptions of data that cannot be understood."""
    specs, evaluated = _specs(args, config, flags_of_reader)
    tokenizer = Tokenizer(config.data.vocabulary or None)
    settings = {"max_tokens": config.data.max_tokens, "limit": args.limit, "hashed": args.hash, "threads": args.threads,
                "num_negatives": None if config.data.num_negatives < 0 else config.data.num_negatives}

    def read(spec, **more):
        source, findings = _opened(spec, config.data.root)
        if source is not None:
            records.inspect(source, findings, tokenizer, repaired=spec.get("bad_boxes") == "repair", **settings, **more)
        return source, findings
    trained = [read(spec) for spec in specs]
    held_out = [read(spec) for spec in evaluated]
    others = [read(spec, keys_only=True) for spec in _against(args, config)]
    found = [findings for _, findings in (*trained, *held_out)]
    shared = [{"name": ours.name} | leaks.overlap(ours, theirs)
              for _, ours in trained for _, theirs in (*held_out, *others)]
    # A source that is compared and cannot be opened is as bad as one that is inspected.
    found += [findings for _, findings in others if findings.problems]

    usable = [(spec, source) for spec, (source, _) in zip(specs, trained) if source is not None and len(source)]
    examples, why_not = [], "found no record to draw"
    if usable and args.samples:
        chosen, sources = map(list, zip(*usable))
        examples, why_not = sheet.draw_samples(train_options(config, chosen, sources, tokenizer), args.samples)
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    problems = sum(len(findings.problems) for findings in found) + sum(len(leak["problems"]) for leak in shared)
    report = {"problems": problems, "sources": [summary.report(findings) for findings in found], "overlap": shared}
    write_whole(output / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_whole(output / "sheet.html", sheet.page(found, shared, examples, why_not))
    summary.print_summary(found, shared)
    verdict = f"{problems:,} problem{'s' * (problems > 1)}" if problems else "Nothing bad found"
    print(f"\n{verdict}. Everything: {output / 'report.json'}, "
          f"samples: {output / 'sheet.html'}")
    return problems


def _opened(spec, root):
    """(source, or None where it cannot be opened; its Findings with the problems of opening it)."""
    name = spec.get("name")
    with collecting() as problems:
        try:
            source = make_source(spec, root)
        except records.BROKEN as error:
            source, fatal = None, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    if source is None:
        # What stops a reader may follow from what it has listed before.
        return None, records.Findings(name or spec["kind"], (), [*problems, fatal])
    return source, records.Findings(name or source.name, source.class_names, problems)


def _specs(args, config, flags_of_reader):
    """Descriptions of the sources to inspect: those to train on, and those of a config's evaluation."""
    if args.config:
        specs = train_specs(config.data)
        evaluated = eval_specs(config.data) if config.data.eval_json or not config.data.train_json else []
        return specs, evaluated
    if args.data and (args.data.endswith(".py") or ".py:" in args.data):
        raise ValueError(f"{args.data}: a config is given as --config={args.data}")
    return [data_arguments.spec_of_options(args.data, args, flags_of_reader)], []


def _against(args, config):
    if args.against is None:
        return []
    if args.against.endswith(".py") or ".py:" in args.against:
        return train_specs(_config([f"--config={args.against}"]).data)
    return [data_arguments.spec_of(args.against, args.against_images or args.images) | {"name": args.against}]


def _arguments(argv):
    """(arguments, config, flags of the reader). Exits for unknown ones."""
    parser = argparse.ArgumentParser("glipv2 inspect", usage=_USAGE, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     description=__doc__.split(": ", 1)[1],
                                     epilog="--config.data.x=… replaces a setting of a config, or of the defaults.")
    parser.add_argument("data", nargs="?", metavar="DATA", help="file or folder; its content says what it is")
    data_arguments.add_options(parser)
    parser.add_argument("--config", help="config file")
    parser.add_argument("--against", metavar="DATA", help="data, or a config, that must not hold the same images")
    parser.add_argument("--against_images", metavar="FOLDER", help="folder of its images; else --images")
    parser.add_argument("--hash", action="store_true", help="compare images by their pixels too")
    parser.add_argument("--limit", type=int, default=0, help="read so many records, evenly spread; 0: all")
    parser.add_argument("--samples", type=int, default=24, help="samples on the page")
    parser.add_argument("--threads", type=int, help="that read; default: a few more than processors")
    parser.add_argument("--output", default="inspected", help="folder of report.json and sheet.html")
    args, rest = data_arguments.split_options(parser, sys.argv[1:] if argv is None else argv)
    fields = [flag for flag in rest if flag.startswith("--config.")]
    rest = [flag for flag in rest if flag not in fields]
    if sum(given is not None for given in (args.data, args.format, args.config)) != 1:
        parser.error("expected one of DATA, --format and --config")
    if args.limit < 0 or args.samples < 0 or (args.threads is not None and args.threads < 1):
        parser.error("--limit and --samples: expected 0 or more, --threads: 1 or more")
    if rest and args.config:
        parser.error(f"unknown arguments {' '.join(rest)}")
    try:
        config = _config([f"--config={args.config or common.__file__}", *fields])
    except (ValueError, OSError, flags.Error, AttributeError, KeyError) as error:
        parser.error(str(error))
    return args, config, rest


def _config(arguments):
    """The ConfigDict of --config=FILE --config.a.b=value …, with flags of its own: those of the training stay as they are."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=["", *arguments])
    values(["", *arguments])
    return holder.value
