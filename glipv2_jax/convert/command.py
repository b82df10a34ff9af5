"""`glipv2 convert`: weights of GLIP, BERT and Swin in; a checkpoint in the reference's layout, or a slim one, out."""
import argparse
import json
import os
import pathlib
import sys

from glipv2_jax.models.config import VARIANTS, model_config


def main(argv=None):
    """Entry point. Exits with a message, and without a trace, for files and arguments that cannot work."""
    args = _parser().parse_args(argv)
    from glipv2_jax.convert import convert, report, slim  # late: --help should not wait for jax's helpers
    try:
        if args.words and args.to != "slim":
            raise ValueError(f"--words: found --to={args.to}, expected --to=slim")
        if args.to:
            _check_export(args)
            if args.to == "slim":
                words = [name.strip() for name in args.words.split(".") if name.strip()] if args.words else None
                params = slim.slim(args.inputs[0], args.output, ema=args.ema, words=words)
                print(f"{args.output}: {sum(x.size for x in params.values()) / 1e6:.1f} M parameters in bfloat16")
            else:
                state = convert.export(args.inputs[0], args.output, args.to, ema=args.ema)
                print(f"{args.output}: {len(state)} keys in the layout of microsoft/GLIP, {args.to}")
            return
        if not args.model:
            raise ValueError(f"--model: found none, expected one of {', '.join(sorted(VARIANTS))}")
        overrides = _overrides(args.overrides)
        done = convert.convert(args.inputs, args.model, args.output, overrides=overrides,
                               vocabulary=args.vocabulary, ema=args.ema, seed=args.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"glipv2 convert: {error}")
    if args.report:
        report.print_report(done, model_config(args.model, overrides), os.environ.get("GLIPV2_REFERENCE"))
    print(f"{args.output}: {report.summary(done)}")


def _parser():
    parser = argparse.ArgumentParser("glipv2 convert", description=__doc__.split(": ", 1)[1])
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="a GLIP checkpoint (.pth), or a BERT and a "
                        "Swin encoder, or both, as torch or safetensors files; with --to, one folder of this "
                        "project")
    parser.add_argument("--model", choices=sorted(VARIANTS), metavar="NAME",
                        help="model to fill: glip_a, glip_t (also B and C), glip_l, glipv2_t, …; see "
                        "`glipv2 models`")
    parser.add_argument("--output", required=True, help="new folder; new file with --to=torch or safetensors")
    parser.add_argument("--to", choices=("torch", "safetensors", "slim"), help="from a folder of this project: "
                        "the reference's layout as one of these files, or a slim folder for prediction: bfloat16, no "
                        "optimizer")
    parser.add_argument("--words", help="with --to=slim: \"a cat. a dog.\", the only class list to know; its encoded words take "
                        "the place of the text encoder")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights, not the last ones")
    parser.add_argument("--report", action="store_true", help="print what became of every weight")
    parser.add_argument("--overrides", default="", help="JSON, or a file of it: other fields of the model")
    parser.add_argument("--vocabulary", help="WordPiece file of the text encoder; else bert-base-uncased")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters that no file fills")
    return parser


def _check_export(args):
    given = [name for name in ("model", "overrides", "vocabulary", "report") if getattr(args, name)]
    if given:
        raise ValueError(f"--to: found --{given[0]} beside it; a checkpoint says itself what its model is")
    if len(args.inputs) != 1:
        raise ValueError(f"--to: found {len(args.inputs)} folders, expected one")


def _overrides(text):
    """dict of --overrides. Raises: ValueError for what is no JSON object."""
    if not text:
        return {}
    if not text.lstrip().startswith("{"):
        text = pathlib.Path(text).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--overrides: {error}; expected JSON such as '{{\"num_blocks\": 4}}'") from error
    if type(found) is not dict:
        raise ValueError(f"--overrides: found a {type(found).__name__}, expected an object of fields")
    return found
