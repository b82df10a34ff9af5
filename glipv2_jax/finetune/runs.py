"""The runs of a fine-tuning: scores of the checkpoint as it is, a run for each seed, its scores, the report."""
import copy
import json
import logging
import pathlib
import statistics
import time

import jax

from glipv2_jax.config_ranges import check_ranges
from glipv2_jax.evaluate import EvalSource
from glipv2_jax.evaluation.command import config_of, score
from glipv2_jax.files import write_whole
from glipv2_jax.finetune.curve import draw_curves
from glipv2_jax.train import changed_fields, durations, train_and_evaluate
from input_pipeline.registry import epoch_records, make_source, train_specs

log = logging.getLogger("glipv2_jax")


def run(checkpoint, base, config, data, output, *, seeds, heldout=None):
    """Fine-tunes once for each seed. The same call goes on after a stop.

    Args:
      checkpoint: folder to start from. base: its config, `config_of`; the held-out set is scored by its settings.
      config: what `recipe` gives, with fields replaced at will. data: recipe.Data. output: folder.
      seeds: of the few-shot subset and of the order of training.
      heldout: source of something else that the checkpoint knows, as the registry takes it; None: none.
    Returns: the report, as `report.json` holds it.
    Raises: ValueError for data, checkpoints or settings that do not fit, and for an output of another fine-tuning.
    """
    output = pathlib.Path(output)
    # Settings, data and lengths are looked at before any model work, and before the folder is claimed.
    check_ranges(config)
    splits = ["test"] if data.test == data.val else ["test", "val"]
    sources = [EvalSource(split, make_source(data.spec(split))) for split in splits]
    train = make_source(data.spec("train"))
    _check_classes(train, [chosen.source for chosen in sources])
    for source in {source.json_path: source for source in (train, *(chosen.source for chosen in sources))}.values():
        if source.repaired:
            log.warning("%s: %d boxes, beyond the border of their image or without area, are cut or dropped", source.json_path, source.repaired)
    specs = train_specs(config.data)
    durations(config.train, epoch_records(specs, [make_source(spec, config.data.root) for spec in specs]))
    other = EvalSource("heldout", make_source(heldout, base.data.root)) if heldout else None
    settings = {"checkpoint": str(pathlib.Path(checkpoint).absolute()), "heldout": heldout,
                "config": json.loads(config.to_json_best_effort()), "test": list(data.test)}
    _claim(output, json.loads(json.dumps(settings, default=str)))

    def scores(weights, folder):
        found = score(_evaluating(weights, config), weights, sources, folder)
        if other:
            found |= score(_evaluating(weights, base), weights, [other], folder / "heldout")
        return found | {f"val/{key.removeprefix('test/')}": value for key, value in found.items() if splits == ["test"]}
    before = _once(output / "zero_shot", lambda: {"scores": scores(checkpoint, output / "zero_shot")})
    runs = []
    for seed in seeds:
        log.info("seed %d: %s", seed, output / f"seed_{seed}")
        runs.append({"seed": seed} | _once(output / f"seed_{seed}", lambda seed=seed: _train(
            config, checkpoint, seed, output / f"seed_{seed}", scores)))
    report = {**settings, "mode": config.train.tune, "shots": config.data.train_shots, "hardware": jax.devices()[0].device_kind,
              "zero_shot": before["scores"], "runs": runs} | _over_seeds(runs)
    if jax.process_index() == 0:
        write_whole(output / "report.json", json.dumps(report, indent=1, default=str) + "\n")
        start = before["scores"]["val/AP"]
        curves = {f"seed {found['seed']}": [(0, start), *map(tuple, found["curve"])] for found in runs}
        draw_curves(curves, f"{output.name}: AP on the {len(make_source(data.spec('val')))} images of val",
                    "steps").save(output / "curve.png")
    return report


def _train(config, checkpoint, seed, folder, scores):
    config = copy.deepcopy(config)
    config.seed = config.data.train_shots_seed = seed
    config.init_from = str(checkpoint)
    started = time.perf_counter()
    train_and_evaluate(config, folder)
    seconds = time.perf_counter() - started
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["step"], line["eval/AP"]) for line in lines if "eval/AP" in line]
    best = max(curve, key=lambda point: (point[1], point[0]))          # ties count as better: the later one
    train = make_source({"kind": "coco_json", "json_path": config.data.train_json, "image_folder": config.data.train_images,
                         "bad_boxes": "repair", "shots": config.data.train_shots, "shots_seed": seed, "keep_empty": False})
    return {"images": len(train), "steps": lines[-1]["step"], "best_step": best[0], "seconds": round(seconds, 1),
            "curve": curve, "scores": scores(folder / "best", folder / "after")}


def _check_classes(train, others):
    """Raises: ValueError for a split with other classes: prompts of training and evaluation have to be one."""
    for source in others:
        if source.class_names != train.class_names:
            raise ValueError(f"{source.json_path}: found the classes {list(source.class_names)[:8]}, expected those of "
                             f"{train.json_path}, in their order: {list(train.class_names)[:8]}")


def _evaluating(weights, settings):
    """The config of a folder of weights, to be scored by the settings of another config."""
    config = config_of(weights)
    config.eval, config.eval.ema = copy.deepcopy(settings.eval), False
    config.data.max_tokens = settings.data.max_tokens
    return config


def _once(folder, make):
    """What `make` gives, kept in the folder: a later call reads it."""
    path = folder / "scores.json"
    if not path.exists():
        found = make()
        if jax.process_index() == 0:
            write_whole(path, json.dumps(found, indent=1) + "\n")
        return found
    return json.loads(path.read_text(encoding="utf-8"))


def _claim(output, settings):
    """Writes down what the folder is for. Raises: ValueError where it is for something else."""
    path = output / "finetune.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        changed = list(changed_fields(stored, _known(settings, stored), "settings"))
        if changed:
            raise ValueError(f"{output}: holds a fine-tuning with other settings, expected the same ones or a new folder:\n  "
                             + "\n  ".join(changed[:10]))
    elif jax.process_index() == 0:
        write_whole(path, json.dumps(settings, indent=1) + "\n")


def _known(settings, stored):
    """The settings without those that the stored ones have no field for: a newer version has added them."""
    return {key: _known(value, stored[key]) if isinstance(value, dict) and isinstance(stored[key], dict) else value
            for key, value in settings.items() if key in stored}


def _over_seeds(runs):
    """Mean and sample standard deviation of every score over the runs; of one run there is no deviation."""
    names = [name for name in runs[0]["scores"] if all(name in run["scores"] for run in runs)]
    values = {name: [run["scores"][name] for run in runs] for name in names}
    return {"mean": {name: statistics.fmean(found) for name, found in values.items()},
            "std": {name: statistics.stdev(found) if len(found) > 1 else None for name, found in values.items()}}
