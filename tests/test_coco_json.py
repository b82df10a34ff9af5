import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline import pipeline, prompts
from input_pipeline.coco_json import CocoJson
from input_pipeline.sources import ClassTable
from input_pipeline.tokenizer import Tokenizer

ORIENTATION = 0x0112


def box(annotation_id, image_id, category_id=3, bbox=(2, 3, 10, 8), **more):
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def content(**changes):
    return {
        "images": [{"id": 20, "file_name": "b.png", "width": 40, "height": 30},
                   {"id": 10, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [box(1, 20), box(2, 20, 7, iscrowd=1), box(3, 10, bbox=(0, 0, 40, 30))],
        "categories": [{"id": 7, "name": "WBC"}, {"id": 3, "name": "RBC"}],
    } | changes


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / name)
    return tmp_path


def opened(folder, data, **options):
    path = folder / "train.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return CocoJson(path, folder, **options)


def test_records(folder):
    source = opened(folder, content())
    assert (source.name, len(source)) == ("train", 2)
    assert source.class_names == ("WBC", "RBC")
    assert source.category_ids == (7, 3)
    first, second = source[0], source[1]
    assert (first["image_id"], second["image_id"]) == (10, 20)
    assert first["boxes"].tolist() == [[0, 0, 39, 29]]
    assert second["boxes"].tolist() == [[2, 3, 11, 10]] * 2
    assert second["classes"].tolist() == [1, 0]
    assert second["is_crowd"].tolist() == [False, True]
    assert (second["boxes"].dtype, second["classes"].dtype) == (np.float32, np.int32)
    assert "masks" not in second
    assert second["image"]().shape == (30, 40, 3)
    assert source.image_size(0) == (30, 40)


def test_nothing_is_decoded_before_it_is_needed(folder):
    (folder / "a.png").write_bytes(b"broken")
    source = opened(folder, content())
    record = source[0]
    with pytest.raises(ValueError, match="a.png: cannot read the image"):
        record["image"]()


def test_better_names(folder):
    source = opened(folder, content(), class_names={"RBC": "red blood cell"})
    assert source.class_names == ("WBC", "red blood cell")
    with pytest.raises(ValueError, match=r"class_names: found \['rbc'\], expected names of .*'WBC', 'RBC'"):
        opened(folder, content(), class_names={"rbc": "red blood cell"})


def test_words_around_a_class_name_reach_training_and_evaluation(folder):
    words = {"RBC": {"prefix": "there are some ", "name": "red cells", "suffix": " on glass"}}
    source = opened(folder, content(), class_names=words)
    assert source.class_names == ("WBC", "red cells")
    tokenizer = Tokenizer()
    prompt = prompts.evaluation_prompts(prompts.names_of(source), tokenizer)[0]
    assert prompt.caption == "WBC. there are some red cells on glass"
    assert [prompt.caption[begin:end] for begin, end in prompt.spans] == ["WBC", "red cells"]
    phrase = tokenizer.encode("there are some red cells on glass", 9).ids[1:-1].tolist()
    for num_negatives in (None, 2):
        read = pipeline.train_reader([source], [1.0], seed=0, batch_size=1, canvases=[(64, 64)], augment="resize(64, 64)",
                                     max_tokens=32, max_boxes=8, num_negatives=num_negatives, full_probability=1.0,
                                     class_table=ClassTable.from_sources([source]), tokenizer=tokenizer)
        ids = read(0, 0)["token_ids"].tolist()
        start = ids.index(phrase[0])
        assert len(phrase) == 7 and ids[start:start + 7] == phrase
    with pytest.raises(ValueError, match="found {'sufix': 'x'}, expected a text, or texts under prefix, name, suffix, synonym"):
        opened(folder, content(), class_names={"RBC": {"sufix": "x"}})


def test_knowledge_of_a_class_reaches_training_prompts(folder):
    """Every prompt takes one of the wordings; a class without a definition keeps its name."""
    source = opened(folder, content(), class_names={"RBC": {"definition": "a round red cell", "prefix": "one "}})
    assert source.class_about == ({"synonym": "", "definition": ""}, {"synonym": "", "definition": "a round red cell"})
    wordings = ("{name}", "{name} , {definition}")
    assert prompts.wordings_of(source, ()) == prompts.wordings_of(source, ("{name}",)) == [list(source.phrases)]
    captions = [prompts.detection_prompt(names)[0] for names in prompts.wordings_of(source, wordings)]
    assert captions == ["WBC. one RBC", "WBC. one RBC , a round red cell"]
    tokenizer = Tokenizer()
    options = {"batch_size": 1, "canvases": [(64, 64)], "augment": "resize(64, 64)", "max_boxes": 8, "num_negatives": None,
               "class_table": ClassTable.from_sources([source]), "tokenizer": tokenizer, "wordings": wordings}
    read = pipeline.train_reader([source], [1.0], seed=0, max_tokens=32, **options)
    examples = [read(step, 0) for step in range(12)]
    found = {tuple(example["token_ids"].tolist()) for example in examples}
    assert found == {tuple(tokenizer.encode(caption, 32).ids.tolist()) for caption in captions}
    own = [tokenizer.encode(name, 8).ids[1:3].tolist() for name in ("WBC", "RBC")]
    for example in examples:                     # the definition names nothing
        for box in np.flatnonzero(example["box_mask"]):
            words = example["token_ids"][example["positive_map"][box]].tolist()
            assert words in own
    with pytest.raises(ValueError, match="expected at most 9"):
        pipeline.train_reader([source], [1.0], seed=0, max_tokens=9, **options)


@pytest.mark.parametrize("annotation, message", [
    (box(5, 20, bbox=(10, 10, -4, 5)), r"annotation 5 of image 20 \(b.png\): found an inverted box"),
    (box(5, 20, bbox=(10, 10, 0, 5)), r"annotation 5 of image 20 \(b.png\): found an empty box"),
    (box(5, 20, bbox=(41, 10, 4, 5)), "found a box outside the image.* inside the 40x30 image"),
    (box(5, 20, bbox=(20, 10, 30, 25)), r"10 pixels over the border.*is it \[x1, y1, x2, y2\]"),
    (box(5, 20, bbox=(20, 10, 3)), "expected four finite numbers"),
    (box(5, 20, bbox=(20, 10, 3, float("nan"))), "expected four finite numbers"),
    (box(5, 20, bbox=(20, 10, 3, "4")), "expected four finite numbers"),
    (box(5, 20, 9), r"found category_id 9, expected one of \[3, 7\]"),
    (box(5, 99), "annotation 5 of image 99: found no such image"),
    (box(1, 10), r"annotations\[3\]: id 1 was used before"),
    ({"id": 5, "image_id": 20, "category_id": 3}, r"annotations\[3\]: 'bbox': found nothing, expected list"),
    (box("5", 20), r"annotations\[3\]: 'id': found '5', expected int"),
    ("text", r"annotations\[3\]: found 'text', expected an object"),
])
def test_bad_annotations_are_named(folder, annotation, message):
    data = content()
    data["annotations"].append(annotation)
    with pytest.raises(ValueError, match=message) as found:
        opened(folder, data)
    assert str(folder / "train.json") in str(found.value)


@pytest.mark.parametrize("image, message", [
    ({"id": 30, "file_name": "c.png", "width": 40, "height": 30}, "image 30: no file .*c.png"),
    ({"id": 10, "file_name": "a.png", "width": 40, "height": 30}, r"images\[2\]: id 10 was used before"),
    ({"id": 30, "file_name": "a.png", "width": 0, "height": 30}, r"image 30 \(a.png\): found size 0x30"),
    ({"id": 30, "file_name": "a.png"}, r"images\[2\]: 'width': found nothing, expected int"),
])
def test_bad_images_are_named(folder, image, message):
    data = content()
    data["images"].append(image)
    with pytest.raises(ValueError, match=message):
        opened(folder, data)


def test_bad_categories_are_named(folder):
    with pytest.raises(ValueError, match=r"categories\[1\]: id 3 was used before"):
        opened(folder, content(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]))
    with pytest.raises(ValueError, match=r"categories\[0\]: 'name': found nothing, expected str"):
        opened(folder, content(categories=[{"id": 3}]))
    with pytest.raises(ValueError, match="'categories': found none"):
        opened(folder, content(categories=[]))


@pytest.mark.parametrize("text, message", [
    ("{'id': 1}", "not a JSON file: .*line 1 column 2"),
    ("[]", r"found a list, expected an object.*result file\?"),
    ('{"images": [], "annotations": []}', "'categories': found nothing, expected a list"),
    ('{"images": {}, "annotations": [], "categories": []}', "'images': found dict, expected a list"),
])
def test_other_files_are_refused(folder, text, message):
    with pytest.raises(ValueError, match=message):
        opened(folder, text)


def test_missing_file_and_folder(folder):
    with pytest.raises(ValueError, match="absent.json: cannot read the annotation file: No such file"):
        CocoJson(folder / "absent.json", folder)
    opened(folder, content())
    with pytest.raises(ValueError, match="no such folder"):
        CocoJson(folder / "train.json", folder / "absent")
    with pytest.raises(ValueError, match="bad_boxes: found 'ignore'"):
        CocoJson(folder / "train.json", folder, bad_boxes="ignore")


def test_many_problems_are_counted(folder):
    data = content(annotations=[box(n, 99) for n in range(25)])
    with pytest.raises(ValueError, match="(?s)problems: 25.*annotation 9 .*and 15 more"):
        opened(folder, data)


def test_repair_drops_and_keeps(folder):
    data = content()
    data["annotations"] += [box(5, 20, bbox=(10, 10, 0, 5)), box(6, 20, bbox=(50, 0, 5, 5)),
                            box(7, 20, bbox=(20, 10, 30, 25))]
    source = opened(folder, data, bad_boxes="repair")
    assert source[1]["boxes"].tolist() == [[2, 3, 11, 10]] * 2 + [[20, 10, 49, 34]]     # the batch clips
    assert source.repaired == 3


def test_a_pixel_over_the_border_is_rounding(folder):
    opened(folder, content(annotations=[box(1, 20, bbox=(-1, 0, 42, 30.5))]))


def test_images_without_boxes(folder):
    crowd_only = [box(1, 20, iscrowd=1), box(2, 10, bbox=(1, 1, 5, 1)), box(3, 10)]
    assert len(opened(folder, content(annotations=crowd_only))) == 2
    assert len(opened(folder, content(annotations=crowd_only), keep_empty=False)) == 1
    with pytest.raises(ValueError, match="found no image to use"):
        opened(folder, content(annotations=crowd_only[:2]), keep_empty=False)
    with pytest.raises(ValueError, match="found no annotations, expected at least one"):
        opened(folder, content(annotations=[]))
    record = opened(folder, content(annotations=[]), require_boxes=False)[0]
    assert record["boxes"].shape == (0, 4) and record["classes"].shape == (0,)


def test_a_truncated_image_is_named(folder):
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg", quality=95)
    (folder / "a.png").write_bytes((folder / "a.jpg").read_bytes()[:1200])
    with pytest.raises(ValueError, match="a.png: cannot read the image: .*truncated"):
        opened(folder, content())[0]["image"]()


def turned(path):
    """A 40 × 30 file that EXIF asks to show as 30 × 40."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (40, 30)).save(path, exif=exif)


def test_the_json_decides_how_a_turned_image_is_read(folder):
    turned(folder / "a.png")
    data = content()
    assert opened(folder, data)[0]["image"]().shape == (30, 40, 3)     # annotated as stored
    data["images"][1] |= {"width": 30, "height": 40}
    data["annotations"] = [box(1, 10)]
    assert opened(folder, data)[0]["image"]().shape == (40, 30, 3)     # annotated upright


def test_another_size_is_an_error(folder):
    Image.new("RGB", (20, 15)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"a.png: image 10: found 20x15 .*expected 40x30 as train.json"):
        opened(folder, content())[0]["image"]()


def test_masks_from_polygons_rle_and_boxes(folder):
    from pycocotools import mask as coco_mask
    truth = np.zeros((30, 40), np.bool_)
    truth[5:17, 8:21] = True
    truth[12:25, 30:33] = True
    compressed = coco_mask.encode(np.asfortranarray(truth.astype(np.uint8)))
    compressed["counts"] = compressed["counts"].decode()
    flat = truth.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    polygon = [[8, 5, 21, 5, 21, 17, 8, 17], [30, 12, 33, 12, 33, 25, 30, 25]]
    data = content(annotations=[
        box(1, 10, segmentation=compressed), box(2, 10, segmentation={"size": [30, 40], "counts": runs}),
        box(3, 10, segmentation=polygon), box(4, 10)])
    masks = opened(folder, data, with_masks=True)[0]["masks"]
    assert masks.shape == (4, 30, 40) and masks.dtype == np.bool_
    for found in masks[:3]:
        np.testing.assert_array_equal(found, truth)
    assert masks[3, 3:11, 2:12].all() and masks[3].sum() == 80


@pytest.mark.parametrize("segmentation, message", [
    ({"size": [40, 30], "counts": [1200]}, r"found size \[40, 30\], expected \[30, 40\]"),
    ({"size": [30, 40], "counts": [5, 5]}, "found runs of 10 pixels in all, expected 1200"),
    ([[1, 2]], ""),
])
def test_bad_masks_are_named(folder, segmentation, message):
    source = opened(folder, content(annotations=[box(8, 10, segmentation=segmentation)]), with_masks=True)
    with pytest.raises(ValueError, match="annotation 8 of image 10: cannot read its segm.*" + message):
        source[0]
