"""The benchmarks of the paper: what each asks of a folder of data, under which settings, and what others reached.

Sources of the numbers: GLIPv2 (arXiv 2206.05836) tables 1 and 2, GLIP (arXiv 2112.03857). Numbers of one table are compared
with those of the same split and protocol only: docs/evaluation.md, which has peers, too.
"""
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable

from glipv2_jax.evaluation import odinw
from input_pipeline import flickr_entities
from input_pipeline.annotations import load_json
from input_pipeline.captions import VQA_IMAGE

log = logging.getLogger(__name__)

_DEPTH = 3               # folders below the data in which files and images are looked for


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    protocol: a name in `protocols.PROTOCOLS`. splits: those there are, the first unless told otherwise.
    find: (folder, split, **options) → evaluation sources as a config has them; raises ValueError for what is missing.
    settings: fields of `config.eval` that belong to the benchmark.
    headline: the score that the paper's table has. paper: model → its value there, in percent.
    """
    protocol: str
    splits: tuple[str, ...]
    find: Callable
    headline: str
    settings: dict = dataclasses.field(default_factory=dict)
    paper: dict = dataclasses.field(default_factory=dict)


def find_sources(name: str, data: str | os.PathLike, split: str | None = None, *, images: bool = True,
                 **options) -> list[dict]:
    """The sources of a benchmark in a folder, before any model work.

    Args:
      images: whether a model is to see the images, which then are looked for too; a result file needs none.
      options: `sets` (names, with commas) and `naming` ("13" or "35") of ODinW.
    Raises: ValueError naming the benchmark, split or file that is not there.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark: found {name!r}, expected one of {', '.join(BENCHMARKS)}")
    benchmark, folder = BENCHMARKS[name], pathlib.Path(data)
    split = split or benchmark.splits[0]
    if split not in benchmark.splits:
        raise ValueError(f"split of {name}: found {split!r}, expected one of {', '.join(benchmark.splits)}")
    if not folder.is_dir():
        raise ValueError(f"{data}: no such folder, expected the data of {name}")
    specs = [{"protocol": benchmark.protocol, **spec} for spec in benchmark.find(folder, split, **options)]
    for spec in specs:
        if not images:
            spec["image_folder"] = None
        elif "image_folder" not in spec:
            spec["image_folder"] = str(_folder_of(folder, _first_image(spec), split))
    return specs


def _file(folder, *patterns):
    """The file that the first pattern with any matches, `_DEPTH` folders deep at most; of several depths the least. Result
    files, which COCO names after the annotations, are none."""
    for pattern in patterns:
        for depth in range(_DEPTH):
            found = sorted(path for path in folder.glob("*/" * depth + pattern) if "result" not in path.name)
            if found:
                return _the_one(folder, f"file {pattern}", found)
    raise ValueError(f"{folder}: found no file {' or '.join(patterns)}, looked {_DEPTH} folders deep")


def _the_one(folder, what, found):
    """Raises: ValueError for several: a score on the wrong one would look like any other."""
    if len(found) > 1:
        some = ", ".join(str(place.relative_to(folder)) for place in found[:5])
        raise ValueError(f"{folder}: found {len(found)} of {what}, expected one: {some}; give --data a folder with one of them")
    return found[0]


def _first_image(spec):
    """What a data set calls its first image."""
    if spec["kind"] == "flickr_entities":
        return f"{flickr_entities.photographs(spec['folder'], spec['split'])[0]}.jpg"
    content = load_json(spec["json_path"])
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images and isinstance(images[0], dict) else {}
    asked = content.get("questions") if isinstance(content, dict) else None
    if isinstance(asked, list) and asked and isinstance(asked[0], dict) and isinstance(asked[0].get("image_id"), int):
        return VQA_IMAGE.format(split=content.get("data_subtype", ""), id=asked[0]["image_id"])
    name = first.get("file_name") or "/".join(str(first.get("coco_url", "")).split("/")[-2:])
    if not name:
        raise ValueError(f"{spec['json_path']}: found no images with a file_name, expected some")
    return name


def _folder_of(folder, name, split):
    """The folder below which an image lies, the first of a data set; of several, which may be those of other splits, the one
    that is called after the split."""
    level, found = [folder], []
    for _ in range(_DEPTH + 1):
        found += [place for place in level if (place / name).is_file()]
        level = [place / name for place in level for name in _folders_in(place)]
    if not found:
        raise ValueError(f"{folder}: found no image {name}, the first of its data set, looked {_DEPTH} folders deep")
    named = [place for place in found if any(split in part for part in place.relative_to(folder).parts)]
    return _the_one(folder, f"image {name}", named or found)


def _folders_in(place):
    with os.scandir(place) as entries:                  # without a look at every one of 100,000 images
        return sorted(entry.name for entry in entries if entry.is_dir())


def _of_json(kind, name, json_path, **options):
    return {"kind": kind, "name": name, "json_path": str(json_path), **options}


def _coco(folder, split):
    path = _file(folder, f"instances_{split}2017.json", f"instances_{split}.json", f"instances_{split}*.json", f"{split}.json")
    return [_of_json("coco_json", "coco", path)]


def _lvis(folder, split):
    path = _file(folder, f"lvis_v1_{split}.json", f"lvis_v1_{split}*.json", f"lvis_{split}*.json")
    return [_of_json("coco_json", f"lvis_{split}", path)]


def _odinw(count):
    def find(folder, split, sets=None, naming=None):
        naming = naming or count
        if naming not in ("13", "35"):
            raise ValueError(f"naming: found {naming!r}, expected 13 or 35")
        known = {one.name: one for one in odinw.SETS}
        chosen = [name.strip() for name in sets.split(",")] if sets else [
            one.name for one in odinw.SETS if one.in_13 or count == "35"]
        base = folder / "odinw" if (folder / "odinw").is_dir() else folder
        specs, missing = [], []
        for name in chosen:
            one = known.get(name)
            part = split if split != "released" else one.split if one else "val"
            files = odinw.files_of(base / (one.folder if one else name), part)
            if files is None:
                missing.append(f"{name} (split {part}, folder {base / (one.folder if one else name)})")
                continue
            names = odinw.class_names(files[0], odinw.words(one, naming)) if one else {}
            specs.append({"kind": "coco_json", "name": name, "json_path": str(files[0]), "image_folder": str(files[1]),
                          "class_names": names, "bad_boxes": "repair"})
        if missing:
            raise ValueError(f"{folder}: {len(missing)} of {len(chosen)} sets of ODinW have no annotations: "
                             f"{'; '.join(missing[:5])}{' …' * (len(missing) > 5)}; --sets=NAME,NAME takes a part of them")
        return specs
    return find


def _flickr(folder, split):
    try:
        sentences = _folder(folder, "Sentences")
    except ValueError:
        path = _file(folder, f"final_flickr_separateGT_{split}.json")
        return [_of_json("grounding_json", f"flickr30k_{split}", path, separate_phrases=True, keep_empty=True, bad_boxes="repair")]
    release = sentences.parent
    listed = [place / f"{split}.txt" for place in (release, release.parent) if (place / f"{split}.txt").is_file()]
    if not listed:
        log.warning("%s: found no %s.txt, so all photographs are scored and not a split of them", release, split)
    return [{"kind": "flickr_entities", "name": f"flickr30k_{split if listed else 'all'}", "folder": str(release),
             "split": str(listed[0]) if listed else None}]


def _folder(folder, name):
    for depth in range(_DEPTH):
        found = [place for place in sorted(folder.glob("*/" * depth + name)) if place.is_dir()]
        if found:
            return found[0]
    raise ValueError(f"{folder}: found no folder {name}, looked {_DEPTH} folders deep")


def _grounding(stems, **options):
    def find(folder, split):
        found = []
        for stem in stems:
            try:
                path = _file(folder, f"finetune_{stem}_{split}.json")
            except ValueError:
                continue
            found.append(_of_json("grounding_json", f"{stem}_{split}", path, keep_empty=True, **options))
        if not found:
            raise ValueError(f"{folder}: found no file {' or '.join(f'finetune_{s}_{split}.json' for s in stems)}, looked "
                             f"{_DEPTH} folders deep")
        return found
    return find


def _questions(folder, split):
    questions = _file(folder, f"v2_OpenEnded_mscoco_{split}2014_questions.json", "v2_*questions*.json", "*questions*.json")
    return [{"kind": "vqa", "name": f"vqav2_{split}", "json_path": str(questions),
             "annotations_path": str(_file(folder, f"v2_mscoco_{split}2014_annotations.json", "v2_*annotations*.json",
                                           "*annotations*.json"))}]


def _captions(folder, split):
    return [{"kind": "coco_captions", "name": f"coco_caption_{split}",
             "json_path": str(_file(folder, f"captions_{split}2014.json", f"captions_{split}2017.json",
                                    f"captions_{split}*.json"))}]


_LVIS_SETTINGS = {"classes_per_prompt": 40, "max_detections": 300}
_ODINW_PAPER = {"glip_t": 46.5, "glip_l": 52.1, "glipv2_t": 48.5, "glipv2_b": 54.2, "glipv2_h": 55.5}
_LVIS_PAPER = {"glip_t": 26.0, "glip_l": 37.3, "glipv2_t": 29.0, "glipv2_b": 48.5, "glipv2_h": 50.1}

BENCHMARKS = {
    "coco": Benchmark("coco", ("val", "train"), _coco, "AP", paper={
        "glip_a": 42.9, "glip_t": 46.6, "glip_l": 49.8, "glipv2_t": 47.3, "glipv2_b": 61.9, "glipv2_h": 64.1}),
    "lvis_minival": Benchmark("lvis", ("minival",), _lvis, "AP", _LVIS_SETTINGS, _LVIS_PAPER),
    "lvis_val": Benchmark("lvis", ("val",), _lvis, "AP", _LVIS_SETTINGS, {"glip_t": 17.2, "glip_l": 26.9}),
    "odinw13": Benchmark("coco", ("released", "test", "val", "minival", "train"), _odinw("13"), "AP", paper=_ODINW_PAPER),
    "odinw35": Benchmark("coco", ("released", "test", "val", "minival", "train"), _odinw("35"), "AP", paper={
        "glip_t": 19.6, "glipv2_t": 22.3}),
    "flickr30k": Benchmark("flickr", ("test", "val", "train"), _flickr, "recall@1", paper={
        "glip_t": 85.7, "glip_l": 87.1, "glipv2_t": 86.0, "glipv2_b": 87.2, "glipv2_h": 87.7}),
    "refcoco": Benchmark("referring", ("val", "testA", "testB", "test"), _grounding(
        ("refcoco", "refcoco+", "refcocog"), bad_boxes="repair"), "accuracy"),
    "phrasecut": Benchmark("regions", ("test", "val", "miniv"), _grounding(
        ("phrasecut",), with_masks=True, bad_boxes="repair"), "mean_IoU", paper={
        "glipv2_t": 59.4, "glipv2_b": 61.3, "glipv2_h": 61.3}),
    "vqav2": Benchmark("answers", ("val", "train"), _questions, "accuracy", paper={
        "glipv2_t": 71.6, "glipv2_b": 73.1, "glipv2_h": 74.6}),
    "coco_caption": Benchmark("captions", ("val", "test"), _captions, "CIDEr", paper={
        "glipv2_t": 122.1, "glipv2_b": 128.5, "glipv2_h": 131.0}),
}
