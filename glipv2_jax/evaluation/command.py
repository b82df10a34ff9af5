"""`glipv2 evaluate`: a benchmark of the paper by name, for a checkpoint or for a file of results."""
import argparse
import json
import logging
import pathlib
import statistics
import sys

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from configs import common
from glipv2_jax import sharding
from glipv2_jax.checkpoint import load_params, read_about
from glipv2_jax.evaluation.benchmarks import BENCHMARKS, find_sources
from glipv2_jax.evaluation.protocols import PROTOCOLS
from glipv2_jax.files import locked, write_whole
from input_pipeline.annotations import load_json
from input_pipeline.registry import make_source

log = logging.getLogger("glipv2_jax")

_USAGE = """glipv2 evaluate --benchmark=NAME --data=DIR --checkpoint=DIR --output=DIR [--FIELD=VALUE of config.eval …]
       glipv2 evaluate --benchmark=NAME --data=DIR --results=FILE           scores of a result file, of any model
       glipv2 evaluate --config=FILE --workdir=DIR                          a run on its own evaluation data"""


def main(argv=None):
    """Entry point. Exits with a message for data, results or checkpoints that cannot be scored."""
    args, settings = _arguments(argv)
    from glipv2_jax.main import set_up_compilation_cache, set_up_logging
    set_up_logging()
    set_up_compilation_cache()
    try:
        options = {key: getattr(args, key) for key in ("sets", "naming") if getattr(args, key) is not None}
        if options and not args.benchmark.startswith("odinw"):
            raise ValueError(f"--{min(options)} belongs to odinw13 and odinw35, not to {args.benchmark}")
        specs = find_sources(args.benchmark, args.data, args.split, images=not args.results, **options)
        if args.results:
            scores = score_results(args.benchmark, specs, args.results, settings)
        else:
            scores = run(args.benchmark, specs, args.checkpoint, args.output, ema=args.ema, settings=settings)
    except (ValueError, OSError) as error:
        sys.exit(f"glipv2 evaluate: {error}")
    if jax.process_index() == 0:
        print_table(args.benchmark, scores, args.model)


def run(benchmark, specs, checkpoint, output, *, ema=False, settings=None):
    """Scores a checkpoint on a benchmark and writes results, protocol and pictures to a folder.

    Args:
      benchmark: a name in `BENCHMARKS`. specs: what `find_sources` gives.
      checkpoint: folder that training or `glipv2 convert` wrote; its config says how images are resized.
      output: folder. ema: take the averaged parameters. settings: fields of `config.eval` to replace.
    Returns: dict "source/metric" → float.
    Raises: ValueError, FileNotFoundError for data or weights that are not there; data is looked at first.
    """
    from glipv2_jax.evaluate import EvalSource
    sources = [EvalSource(spec["name"], make_source(spec), spec["protocol"]) for spec in specs]
    config = config_of(checkpoint, BENCHMARKS[benchmark].settings | (settings or {}) | {"ema": ema})
    scores = score(config, checkpoint, sources, output, ema=ema)
    if jax.process_index() == 0 and len(sources) > 1:
        _write_joined(output, sources)
    return scores


def score(config, checkpoint, sources, output, *, ema=False):
    """Scores a checkpoint on sources, as a config says.

    Args:
      config: ConfigDict that fits the checkpoint, such as `config_of` gives. sources: list of EvalSource.
      output: folder of results, protocols and pictures, see `evaluate.evaluate`.
    Returns: dict "source/metric" → float.
    Raises: FileNotFoundError without a checkpoint; ValueError if it does not fit the config's model; OSError while another run
      writes to the output folder.
    """
    from glipv2_jax.build import abstract_params, build, find_answers
    from glipv2_jax.evaluate import evaluate
    from glipv2_jax.predictor import Predictor
    mesh, tokenizer, model = build(config)
    answers = find_answers(config, model, (), checkpoint)
    with locked(output), sharding.use(mesh, config.mesh.rules):
        predictor = Predictor(model, mesh, config.eval)
        predictor.params = load_params(checkpoint, abstract_params(mesh, model, config), ema=ema)
        return evaluate(predictor, mesh, config, sources, tokenizer, output,
                        f"{pathlib.Path(checkpoint).name}, step {read_about(checkpoint)['next_step']}{', averaged' * ema}", answers)


def score_results(benchmark, specs, path, settings=None):
    """Scores a result file.

    Args:
      specs: what `find_sources` gives. settings: as in `run`.
      path: file in the benchmark's format; of ODinW that of its leaderboard, {set: rows}, or few-shot {set: {seed: rows}},
        whose scores are averaged.
    Returns: dict "source/metric" → float. Raises: ValueError for a file that does not fit.
    """
    protocol, e = PROTOCOLS[BENCHMARKS[benchmark].protocol], _replaced(common.get_config(), settings or {}).eval
    stored = load_json(path)
    by_set = stored if isinstance(stored, dict) and protocol is PROTOCOLS["coco"] else None
    missing = [spec["name"] for spec in specs if by_set is None or spec["name"] not in by_set]
    if missing and (by_set is not None or len(specs) > 1):
        raise ValueError(f"{path}: found no results of {', '.join(missing[:5])}, expected an object with the results of "
                         "every set under its name")
    scores = {}
    for spec in specs:
        truth, of_set = protocol.truth_of(spec), stored if by_set is None else by_set[spec["name"]]
        seeds = list(of_set.values()) if by_set is not None and isinstance(of_set, dict) else [of_set]
        try:
            found = [protocol.score(truth, protocol.read(rows), e) for rows in seeds]
        except ValueError as error:
            raise ValueError(f"{path}, {spec['name']}: {error}") from error
        scores |= {f"{spec['name']}/{key}": statistics.mean(of_seed[key] for of_seed in found)
                   for key, value in found[0].items() if value is not None}
    return scores


def print_table(benchmark, scores, model=None):
    """The scores in percent, the paper's beside the one that its table has; several sets with average and median."""
    described = BENCHMARKS[benchmark]
    table = Table("set", "metric", "percent", title=benchmark, title_style="")
    sets = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in scores))
    for name, value in scores.items():
        if "/num_" not in name and (len(sets) == 1 or name.endswith(f"/{described.headline}")):
            table.add_row(*name.rsplit("/", 1), f"{100 * value:.2f}")
    headline = [value for name, value in scores.items() if name.endswith(f"/{described.headline}")]
    if len(headline) > 1:
        table.add_section()
        table.add_row("average", described.headline, f"{100 * statistics.mean(headline):.2f}")
        table.add_row("median", described.headline, f"{100 * statistics.median(headline):.2f}")
    if described.paper:
        table.add_section()
        for variant, value in described.paper.items():
            if model in (None, variant):
                table.add_row(f"{variant}, published", described.headline, f"{value:.1f}")
    Console().print(table)


def _write_joined(output, sources):
    """All sets' results in one file, as ODinW's leaderboard takes them: {name: rows}."""
    output = pathlib.Path(output)
    files = [(chosen.name, (output if place == 0 else output / chosen.name) / chosen.chosen_protocol().file)
             for place, chosen in enumerate(sources)]
    text = ",\n".join(f"{json.dumps(name)}: {file.read_text(encoding='utf-8').strip()}" for name, file in files)
    write_whole(output / "all_sets.json", "{" + text + "}\n")


def config_of(checkpoint, settings=None):
    """The checkpoint's own config, with what is missing from it as in configs/common.py.

    settings: fields of `config.eval` to replace.
    """
    about = read_about(checkpoint)
    stored = about["config"]
    config = common.get_config()
    for section in ("model", "data", "eval", "loss"):
        for key, value in stored.get(section, {}).items():
            if key in config[section] and not isinstance(config[section][key], ConfigDict):
                config[section][key] = tuples(value)
    config.model.overrides = ConfigDict(stored["model"]["overrides"])
    if about["model"].get("prompt_tokens"):
        config.model.overrides.prompt_tokens = about["model"]["prompt_tokens"]     # tuning gave it to the model, not the config
    vocabulary = pathlib.Path(checkpoint) / "vocab.txt"
    if vocabulary.exists():
        config.data.vocabulary = str(vocabulary)
    return _replaced(config, settings or {})


def _replaced(config, settings):
    """The config with some fields of `eval` replaced. Raises: ValueError for a name or type that does not fit."""
    for key, value in settings.items():
        if key not in config.eval:
            raise ValueError(f"--{key}: no field of config.eval, expected one of {', '.join(sorted(config.eval))}")
        try:
            config.eval[key] = tuples(value)
        except TypeError as error:
            raise ValueError(f"--{key}: {error}") from error
    return config


def tuples(value):
    """What JSON gave, with tuples for lists, as configs have them."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _arguments(argv):
    parser = argparse.ArgumentParser("glipv2 evaluate", usage=_USAGE, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     description=__doc__.split(": ", 1)[1])
    parser.add_argument("--benchmark", required=True, choices=BENCHMARKS)
    parser.add_argument("--data", required=True, help="folder of annotations and images; docs/evaluation.md has the layouts")
    parser.add_argument("--split", help="; ".join(f"{name}: {', '.join(b.splits)}" for name, b in BENCHMARKS.items()))
    parser.add_argument("--checkpoint", help="folder that training or glipv2 convert wrote")
    parser.add_argument("--output", help="folder of the results; the same one goes on after a stop")
    parser.add_argument("--results", help="score this file instead of a checkpoint")
    parser.add_argument("--sets", help="of ODinW: names with commas, known ones or folders below the data")
    parser.add_argument("--naming", choices=("13", "35"), help="of ODinW: class names of configs/odinw_13 or odinw_35")
    parser.add_argument("--ema", action="store_true", help="score the averaged parameters")
    parser.add_argument("--model", help="show the published number of this model alone")
    args, unknown = parser.parse_known_args(argv)
    settings = {}
    for flag in unknown:
        name, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not equals:
            parser.error(f"found {flag!r}, expected --FIELD=VALUE of config.eval")
        try:
            settings[name] = tuples(json.loads(value))
        except ValueError:
            settings[name] = value
    if args.results and (args.checkpoint or args.output or args.ema):
        parser.error("found --results beside --checkpoint, --output or --ema: a result file is scored as it is, the table is all")
    if not args.results and not (args.checkpoint and args.output):
        parser.error("found no --results, expected --checkpoint and --output")
    return args, settings
