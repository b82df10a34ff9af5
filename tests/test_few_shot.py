"""Few-shot subsets: the reference's on real data sets, and hand-made cases."""
import json
import random

import pytest

from configs import coco_json
from input_pipeline.few_shot import pick
from input_pipeline.registry import eval_specs, make_source, train_specs
from input_pipeline.sources import mixture_weights
from tests.conftest import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data"
COPIES = {"1": 8, "3": 4, "5": 2, "10": 1}             # by shots, as the reference's documentation has them


def few_shot(name, shots, seed):
    """(config, source) of a run on a shared data set."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no shared data {name}")
    config = coco_json.get_config()
    config.data.root = str(folder)
    config.data.train_json = f"annotations/{'instances_' * (name == 'coco_small')}train.json"
    config.data.train_images = "images/train"
    config.data.train_shots, config.data.train_shots_seed = int(shots), int(seed)
    config.data.train_copies = COPIES[shots]
    return config, make_source(train_specs(config.data)[0], config.data.root)


def ids(source):
    return [source[index]["image_id"] for index in range(len(source))]


def _at_hand(load_reference):
    sets = load_reference("evaluation/odinw_fewshot.json")["sets"]
    found = [(name, readers) for name, readers in sets.items() if (DATA / name).is_dir()]
    return found or pytest.skip(f"no shared data {', '.join(sets)}")


def test_reference_subsets(load_reference):
    """All sets that are at hand. COCO's own ids end one of the reference's readers; what the other answers is compared."""
    checked = 0
    for name, readers in _at_hand(load_reference):
        for reader, cases in readers.items():
            for shots, of_seed in cases.items():
                for seed, expected in of_seed.items():
                    if shots == "0" or seed == "identical_for_all_seeds" or "error" in expected:    # 0: all images, below
                        continue
                    config, source = few_shot(name, shots, 0 if reader == "documented_command" else seed)
                    assert ids(source) == expected["image_ids"], (name, reader, shots, seed)
                    length = mixture_weights(train_specs(config.data), [source])[0]
                    assert length == expected["dataset_length"]
                    boxes = [source.category_ids[c] for index in range(len(source)) for c in source[index]["classes"]]
                    assert {str(c): boxes.count(c) for c in set(boxes)} == {
                        c: n for c, n in expected["boxes_per_category"].items() if n}
                    checked += 1
    assert checked


def test_no_shots_is_all_images(load_reference):
    for name, readers in _at_hand(load_reference):
        config, _ = few_shot(name, "1", 0)
        config.data.train_shots = 0
        expected = readers["documented_command"]["0"]["any"]["image_ids"]["ids"]
        assert ids(make_source(train_specs(config.data)[0], config.data.root)) == expected


def test_sparse_ids_have_subsets_of_any_seed():
    """Where the reference fails: COCO's category ids have gaps."""
    assert len({tuple(ids(few_shot("coco_small", "1", seed)[1])) for seed in (0, 3, 30, 300)}) == 4


def test_reference_shuffle(load_reference):
    """Python's own generator: the subsets stay the same only as long as its shuffle does."""
    expected = load_reference("evaluation/odinw_fewshot.json")["python_random_seed_3_shuffle_of_1_to_20"]
    numbers = list(range(1, 21))
    random.Random(3).shuffle(numbers)
    assert numbers == expected
    assert pick({n: [n] for n in range(1, 21)}, 1, 3) == expected      # every image is wanted


def test_an_image_counts_for_all_its_classes():
    # The second shows nothing new; the fourth is wanted for its cat, and its dogs are beyond the quota.
    images = {4: ["dog", "dog", "cat"], 1: ["dog"], 2: ["dog", "dog"], 3: []}
    assert pick(images, 1) == [1, 4]
    assert pick(images, 2) == [1, 2, 4]
    assert pick(images, 2, seed=None) == pick(images, 2, seed=0)
    assert pick(dict(reversed(images.items())), 1, seed=3) == pick(images, 1, seed=3)   # not the order of the file
    assert pick({}, 5) == []
    with pytest.raises(ValueError, match="shots: found 0, expected at least 1"):
        pick(images, 0)


def test_a_run_without_held_out_data_is_scored_on_its_subset():
    config, source = few_shot("odinw_bccd", "1", "3")
    spec = eval_specs(config.data)[0]
    scored = make_source(spec, config.data.root)
    assert spec["name"] == "train_set" and ids(scored) == ids(source) == [256, 48]
    assert scored.official_json is None                     # the file holds images that were not asked for


def test_images_without_boxes_to_train_on_are_not_offered(tmp_path):
    from PIL import Image
    for name in "abc":
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    boxes = {1: {"iscrowd": 1, "bbox": [0, 0, 9, 9]}, 2: {"bbox": [0, 0, 1, 9]}, 3: {"bbox": [0, 0, 9, 9]}}
    path = tmp_path / "train.json"
    path.write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{'abc'[i - 1]}.png", "width": 40, "height": 30} for i in boxes],
        "annotations": [{"id": i, "image_id": i, "category_id": 7, **box} for i, box in boxes.items()],
        "categories": [{"id": 7, "name": "cat"}]}))
    spec = {"kind": "coco_json", "json_path": str(path), "image_folder": str(tmp_path)}
    assert ids(make_source(spec)) == [1, 2, 3]
    assert ids(make_source({**spec, "shots": 1})) == [3]
