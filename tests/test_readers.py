"""Readers of grounding JSON, LVIS and Pascal VOC: small files in the official form, and what is wrong named."""
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline import image_ops, pipeline, prompts
from input_pipeline.coco_json import CocoJson
from input_pipeline.grounding_json import GroundingJson
from input_pipeline.registry import make_source
from input_pipeline.sources import ClassTable
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.voc import Voc


def picture(path, size=(640, 480)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "green").save(path)
    return path


# Grounding JSON.

def pair(image_id=1, caption="cat bird dog", **more):
    return {"id": image_id, "file_name": "a.png", "height": 480, "width": 640, "caption": caption, **more}


def box(bbox=(10, 20, 30, 40), spans=((0, 3),), image_id=1, **more):
    return {"image_id": image_id, "bbox": list(bbox), "area": 1.0, "category_id": 1, "iscrowd": 0,
            "tokens_positive": [list(span) for span in spans], **more}


@pytest.fixture
def grounding(tmp_path):
    picture(tmp_path / "a.png")

    def read(images, annotations, **options):
        (tmp_path / "data.json").write_text(json.dumps({"images": images, "annotations": annotations,
                                                        "categories": [{"id": 1, "name": "object"}]}))
        return make_source({"kind": "grounding_json", "json_path": "data.json", "image_folder": "", **options},
                           str(tmp_path))
    return read


def test_the_reference_case(grounding, load_reference):
    case = load_reference("data_side.json")["grounding_annotation"]
    width, height = case["size_wh"]
    picture_size = {"height": height, "width": width}
    source = grounding([pair(caption=case["caption"]) | picture_size],
                       [{"image_id": 1, **annotation} for annotation in case["annotations"]], bad_boxes="repair")
    record = source[0]
    boxes, keep = image_ops.clip_boxes(record["boxes"], (height, width))
    keep &= ~record["is_crowd"]
    assert boxes[keep].tolist() == case["boxes"]
    spans = [spans for spans, kept in zip(record["spans"], keep) if kept]
    assert spans == [[tuple(span) for span in of_box] for of_box in case["tokens_positive"]]


def test_pairs_come_by_id_with_what_evaluation_asks(grounding):
    source = grounding([pair(7, original_img_id=3, sentence_id=2, tokens_positive_eval=[[[0, 3]]]), pair(2, "a dog")],
                       [box(image_id=7, spans=[(0, 3), (9, 12)]), box(image_id=2, spans=[(0, 5)]),
                        box(image_id=7, bbox=(0, 0, 640, 480), spans=[(4, 8)])])
    assert len(source) == 2 and [source[i]["image_id"] for i in (0, 1)] == [2, 7]
    record = source[1]
    assert record["spans"] == [[(0, 3), (9, 12)], [(4, 8)]] and record["boxes"][1].tolist() == [0, 0, 639, 479]
    assert record["about"] == {"original_img_id": 3, "sentence_id": 2, "tokens_positive_eval": [[[0, 3]]]}
    assert source[0]["about"] == {} and source.caption(0) == "a dog" and source.image_size(0) == (480, 640)
    assert record["image"]().shape == (480, 640, 3)


def test_phrases_that_share_a_box_are_told_apart_for_evaluation(grounding):
    images = [pair(tokens_positive_eval=[[[0, 3]], [[4, 8]], [[9, 12]]]), pair(2)]
    boxes = [box(spans=[(9, 12), (0, 3)]), box(bbox=(1, 2, 3, 4), spans=[(4, 8)]), box(bbox=(5, 6, 7, 8), spans=[(0, 3)]),
             box(image_id=2, spans=[(0, 3), (4, 8)])]
    joined, separate = (grounding(images, boxes, separate_phrases=chosen)[0] for chosen in (False, True))
    assert joined["spans"] == [[(9, 12), (0, 3)], [(4, 8)], [(0, 3)]]
    assert separate["spans"] == [[(0, 3)], [(0, 3)], [(4, 8)], [(9, 12)]]
    assert separate["boxes"][:, 0].tolist() == [10, 5, 1, 10]
    assert grounding(images, boxes, separate_phrases=True)[1]["spans"] == [[(0, 3), (4, 8)]]      # a file without them
    with pytest.raises(ValueError, match="image 1, tokens_positive_eval: found span"):
        grounding([pair(tokens_positive_eval=[[[0, 99]]])], boxes[:1], separate_phrases=True)


def test_missing_images_are_named_when_the_file_is_opened(grounding):
    pairs = [pair(), pair(2, file_name="b.png"), pair(3, file_name="below/c.png")]
    boxes = [box(image_id=n) for n in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"(?s)problems: 2.*image 2: no file .*b\.png.*image 3: no file .*c\.png"):
        grounding(pairs, boxes)
    assert len(grounding(pairs[:1], boxes[:1])) == 1
    alone = GroundingJson(grounding(pairs[:1], boxes[:1]).json_path, None)
    assert alone.caption(0) == pair()["caption"]
    with pytest.raises(ValueError, match="opened without image_folder"):
        alone[0]["image"]()


def test_the_older_key_of_spans_and_masks(grounding):
    annotation = box(spans=()) | {"tokens": [[4, 8]], "segmentation": [[10, 20, 40, 20, 40, 60]]}
    record = grounding([pair()], [annotation, box()], with_masks=True)[0]
    assert record["spans"] == [[(4, 8)], [(0, 3)]] and record["masks"].shape == (2, 480, 640)
    assert 500 < record["masks"][0].sum() < 700 and record["masks"][1].sum() == 30 * 40


def test_two_image_folders_of_a_mixed_file(grounding, tmp_path):
    picture(tmp_path / "coco" / "a.png", (640, 480))
    Image.new("RGB", (640, 480), "red").save(tmp_path / "coco" / "a.png")
    images = [pair(1, data_source="coco"), pair(2, data_source="vg")]
    source = grounding(images, [box(), box(image_id=2)], coco_folder="coco")
    assert source[0]["image"]()[0, 0].tolist() == [255, 0, 0] and source[1]["image"]()[0, 0].tolist() == [0, 128, 0]
    only = grounding(images, [box(), box(image_id=2)], without_coco=True)
    assert len(only) == 1 and only[0]["image_id"] == 2
    with pytest.raises(ValueError, match="expected a coco_folder"):
        grounding(images, [box(), box(image_id=2)])


def test_pairs_without_a_usable_box_are_dropped_as_the_reference_drops_them(grounding):
    images, boxes = [pair(1), pair(2), pair(3)], [box(), box((5, 5, 1, 30), image_id=2)]
    assert len(grounding(images, boxes)) == 1
    assert len(grounding(images, boxes, keep_empty=True)) == 3


@pytest.mark.parametrize("images, annotations, message", [
    ([pair(), pair()], [box()], "image 1: another image has the same id"),
    ([pair(caption=" ")], [box()], "image 1: found an empty caption"),
    ([pair(-1)], [], "found image id -1, expected a whole number from 0"),
    ([{"id": 1}], [], "image 1: 'file_name': found nothing, expected str"),
    ([pair()], [box(image_id=9)], r"annotations\[0\]: found image_id 9"),
    ([pair()], [box(spans=[(0, 99)])], r"annotations\[0\] of image 1: found span \[0, 99\]"),
    ([pair()], [box((700, 0, 5, 5))], "a box outside the image"),
    ([pair()], [box((0, 0, -5, 5))], "an inverted or empty box"),
    ([pair()], [{"image_id": 1, "bbox": [0, 0, 5, 5]}], "'tokens_positive': found nothing"),
    ([pair()], [], "found no caption with a box"),
])
def test_bad_grounding_files_are_named(grounding, images, annotations, message):
    with pytest.raises(ValueError, match=message):
        grounding(images, annotations)


def test_repair_drops_bad_boxes_and_spans(grounding):
    record = grounding([pair()], [box((700, 0, 5, 5)), box(spans=[(0, 99), (4, 8)])], bad_boxes="repair")[0]
    assert record["boxes"].tolist() == [[10, 20, 39, 59]] and record["spans"] == [[(4, 8)]]


def test_problems_are_listed_together(grounding):
    with pytest.raises(ValueError, match="(?s)problems: 12.*and 2 more"):
        grounding([pair()], [box(image_id=9)] * 12)


# LVIS.

def lvis(tmp_path, **image):
    picture(tmp_path / "val2017" / "000000000139.jpg")
    names = ["aerosol_can", "apple", "zebra", "bat_(animal)"]
    (tmp_path / "lvis.json").write_text(json.dumps({
        "images": [{"id": 139, "height": 480, "width": 640, "neg_category_ids": [3, 4],
                    "not_exhaustive_category_ids": [2],
                    "coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg", **image}],
        "annotations": [{"id": 1, "image_id": 139, "category_id": 2, "bbox": [1, 2, 30, 40], "area": 1200.0,
                         "segmentation": [[1, 2, 31, 2, 31, 42, 1, 42]]}],
        "categories": [{"id": n + 1, "name": name, "frequency": "f"} for n, name in enumerate(names)]}))
    return CocoJson(tmp_path / "lvis.json", tmp_path)


def test_lvis_images_are_found_by_their_url_and_absent_classes_are_known(tmp_path):
    source = lvis(tmp_path)
    record = source[0]
    assert record["negatives"].tolist() == [2, 3] and record["image"]().shape == (480, 640, 3)
    tokenizer, drawn = Tokenizer(), set()
    for seed in range(20):
        drawn |= set(prompts.sample_classes(source.class_names, record["classes"], tokenizer,
                                            np.random.default_rng(seed), candidates=record["negatives"]))
    assert drawn == {1, 2, 3}                     # never aerosol_can, of which nobody knows


def test_training_draws_only_absent_classes(tmp_path):
    source, tokenizer = lvis(tmp_path), Tokenizer()
    batches = pipeline.train_batches([source], [1.0], seed=0, start_step=0, batch_size=4, canvases=[(64, 64)],
                                     augment="resize(48, 64)", max_tokens=32, max_boxes=4, num_negatives=4,
                                     class_table=ClassTable.from_sources([source]), tokenizer=tokenizer)
    aerosol = set(tokenizer.encode("aerosol", 8).ids.tolist()[1:-1]) - {tokenizer.pad_id, tokenizer.sep_id}
    zebra = tokenizer.encode("zebra", 8).ids[1]
    ids = np.concatenate([next(batches)["token_ids"] for _ in range(4)])
    assert (ids == zebra).any() and not np.isin(ids, list(aerosol)).any()
    batches.close()


def test_unknown_absent_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image 139: neg_category_ids: found \[77\]"):
        lvis(tmp_path, neg_category_ids=[3, 77])


# Pascal VOC.

def voc(folder, objects="", text=None, name="000001"):
    picture(folder / "JPEGImages" / f"{name}.jpg", (500, 375))
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(text or (
        f"<annotation><filename>{name}.jpg</filename><size><width>500</width><height>375</height><depth>3</depth>"
        f"</size>{objects}</annotation>"))


def thing(name="dog", difficult=0, bndbox=(48, 240, 195, 371)):
    corners = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), bndbox))
    return (f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox>"
            "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>")


def test_voc(tmp_path):
    voc(tmp_path, thing() + thing("person", 1, (1, 1, 500, 375)))
    voc(tmp_path, thing("cat"), name="000002")
    source = make_source({"kind": "voc", "folder": "."}, str(tmp_path))
    assert len(source) == 2 and len(source.class_names) == 20 and source.image_size(0) == (375, 500)
    record = source[0]
    assert record["boxes"].tolist() == [[47, 239, 194, 370]] and source.class_names[record["classes"][0]] == "dog"
    assert record["image"]().shape == (375, 500, 3)
    assert Voc(tmp_path, keep_difficult=True)[0]["boxes"].tolist()[1] == [0, 0, 499, 374]
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("000002\n")
    assert len(Voc(tmp_path, split="train")) == 1
    voc(tmp_path, thing("unicorn"), name="000003")
    assert Voc(tmp_path).class_names == ("cat", "dog", "unicorn")


@pytest.mark.parametrize("text, message", [
    ('<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', "found a document type"),
    ('<!doctype a SYSTEM "file:///etc/passwd"><annotation/>', "found a document type"),
    ("<annotation>", "not XML"),
    ("<annotation/>", "expected size/height"),
    ("<annotation><size><width>9</width><height>9</height></size><object><name>dog</name></object></annotation>",
     "bndbox/xmin"),
])
def test_bad_voc_files_are_named(tmp_path, text, message):
    voc(tmp_path, text=text)
    with pytest.raises(ValueError, match=rf"(?s)000001.xml: .*{message}"):
        Voc(tmp_path)


def test_voc_boxes_and_classes_are_checked(tmp_path):
    voc(tmp_path, thing(bndbox=(600, 1, 700, 9)))
    with pytest.raises(ValueError, match="a box outside the image"):
        Voc(tmp_path)
    assert len(Voc(tmp_path, bad_boxes="repair")[0]["boxes"]) == 0
    voc(tmp_path, thing("unicorn"))
    with pytest.raises(ValueError, match=r"found classes \['unicorn'\]"):
        Voc(tmp_path, class_names=["dog"])
    with pytest.raises(ValueError, match="cannot read the split"):
        Voc(tmp_path, split="nowhere")
