"""GLIP's TSV data sets and texts without boxes: files as the reference reads them, made here."""
import base64
import io
import json

import pytest
from PIL import Image

from input_pipeline.annotations import collecting
from input_pipeline.registry import make_source
from tests.conftest import REPOSITORY

SHARED = REPOSITORY.parent / "shared" / "data"


def jpeg(size=(40, 30), colour="green"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_tsv(path, *rows, index=True):
    """Rows of columns, and the byte offsets beside them."""
    text, offsets = b"", []
    for row in rows:
        offsets.append(len(text))
        text += b"\t".join(c if isinstance(c, bytes) else str(c).encode() for c in row) + b"\n"
    path.write_bytes(text)
    if index:
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


@pytest.fixture
def data_set(tmp_path):
    """Function of labels and parts: a Tsv over pictures of 40 x 30."""
    def make(labels, colours=("green", "red", "blue"), images=None, options=None, **parts):
        images = images or [base64.b64encode(jpeg(colour=colour)) for colour in colours[:len(labels)]]
        write_tsv(tmp_path / "train.tsv", *[(f"k{n}", image) for n, image in enumerate(images)])
        write_tsv(tmp_path / "train.label.tsv", *[(10 + n, json.dumps(label)) for n, label in enumerate(labels)])
        lines = {"img": "train.tsv", "label": "train.label.tsv"}
        for key, content in parts.items():
            name = f"{key}.json" if isinstance(content, (dict, list)) else f"{key}.tsv"
            (tmp_path / name).write_text(json.dumps(content) if isinstance(content, (dict, list)) else content)
            lines[key] = name
        (tmp_path / "train.yaml").write_text("".join(f"{key}: {name}\n" for key, name in lines.items()))
        return make_source({"kind": "tsv", "yaml_path": "train.yaml", **(options or {})}, str(tmp_path))
    return make


def thing(name="cat", rect=(1, 2, 20, 25)):
    return {"class": name, "rect": list(rect)}


MAP = {"__background__": 0, "dog": 2, "cat": 1}


def test_objects(data_set):
    source = data_set([[thing()], {"objects": [thing("dog", (0, 0, 39, 29)), thing()]}], labelmap={"label_to_idx": MAP},
                      hw="a\t30 40\nb\t[{\"height\": 30, \"width\": 40}]\n")
    assert source.class_names == ("cat", "dog") and source.category_ids == (1, 2) and not source.replace_empty
    assert source[0]["boxes"].tolist() == [[1, 2, 20, 25]] and source[0]["image_id"] == 10
    assert source[1]["classes"].tolist() == [1, 0] and source[1]["image"]()[0, 0].tolist() == [255, 0, 0]
    assert source.image_size(0) == source.image_size(1) == (30, 40)


@pytest.mark.parametrize("label_map", [{"cat": 1, "dog": 2}, "cat\ndog\n"])
def test_label_maps_have_three_forms(data_set, label_map):
    assert data_set([[thing("dog")]], labelmap=label_map)[0]["classes"].tolist() == [1]


def test_a_linelist_chooses_orders_and_repeats(data_set):
    source = data_set([[thing(rect=(0, 0, n + 1, 5))] for n in range(3)], labelmap=MAP, linelist="2\n0\n2\n")
    assert [source[i]["boxes"][0, 2] for i in range(len(source))] == [3, 1, 3]
    assert source[0]["image"]()[0, 0].tolist() == [0, 0, 255]


def test_labels_that_are_not_aligned_with_the_images(data_set):
    labels = [{"img_id": "b", "caption": "x", "bboxes": [], "scores": [], "tokens_positive": []},
              {"img_id": "a", "caption": "y", "bboxes": [], "scores": [], "tokens_positive": []}]
    source = data_set(labels, imageid2idx={"a": 0, "b": 1})
    assert source[0]["image"]()[0, 0].tolist() == [255, 0, 0] and source[1]["image"]()[0, 0].tolist() == [0, 128, 0]
    assert source.image_size(0) == (30, 40)                        # no hw file, no img_h: from the header


def caption_row(**more):
    return {"caption": "a cat and a dog", "img_h": 60, "img_w": 80, "bboxes": [[2, 4, 40, 50], [0, 0, 8, 8]],
            "scores": [0.9, 0.4], "tokens_positive": [[[0, 5]], [[10, 15]]], **more}


def test_captions_of_both_versions(data_set):
    entities = caption_row(bboxes=[[[2, 4, 40, 50], [0, 0, 8, 8]], [[4, 4, 20, 20]]], scores=[[0.9, 0.4], [0.8]])
    source = data_set([caption_row(), entities], options={"min_score": 0.5})
    assert source.replace_empty and source.class_names == () and source.caption(1) == "a cat and a dog"
    assert source[0]["boxes"].tolist() == [[1, 2, 20, 25]] and source[0]["spans"] == [[(0, 5)]]     # half the size
    assert source[1]["boxes"].tolist() == [[1, 2, 20, 25], [2, 2, 10, 10]]
    assert source[1]["spans"] == [[(0, 5)], [(10, 15)]]
    assert len(data_set([caption_row()])[0]["boxes"]) == 2


@pytest.mark.parametrize("labels, parts, message", [
    ([[thing("bird")]], {"labelmap": MAP}, "label.tsv, line 1: found class 'bird'"),
    ([[thing(rect=(1, 2, 3))]], {"labelmap": MAP}, "found box"),
    ([caption_row(scores=[0.9])], {}, "found 2, 1, 2 bboxes, scores and tokens_positive"),
    ([caption_row(tokens_positive=[[[0, 99]], []])], {}, r"found span \[0, 99\]"),
    ([[thing()]], {"labelmap": MAP, "linelist": "7\n"}, "found rows 7 to 7, expected 0 to 0"),
    ([[thing()]], {"labelmap": {"cat": 1, "dog": 1}}, "one for each"),
    (["text"], {}, "found a str, expected an object"),
])
def test_bad_rows_are_named(data_set, labels, parts, message):
    with pytest.raises(ValueError, match=message):
        data_set(labels, **parts)[0]


def test_bad_images_and_parts_are_named(data_set, tmp_path):
    with pytest.raises(ValueError, match="train.tsv, line 1: the image is not base64"):
        data_set([[thing()]], images=[b"@@@"], labelmap=MAP)[0]["image"]()
    with pytest.raises(ValueError, match="label.tsv, line 1: cannot read the image"):
        data_set([[thing()]], images=[base64.b64encode(jpeg()[:40])], labelmap=MAP)[0]["image"]()
    with pytest.raises(ValueError, match="found 1 rows of images and 2 of labels"):
        data_set([[thing()], [thing()]], images=[b"AA"], labelmap=MAP)
    (tmp_path / "train.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="not YAML"):
        make_source({"kind": "tsv", "yaml_path": "train.yaml"}, str(tmp_path))


# Texts without boxes.

def test_coco_captions():
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data")
    source = make_source({"kind": "coco_captions", "json_path": "annotations/captions_val.json",
                          "image_folder": "images/val"}, str(SHARED / "coco_small"))
    assert len(source) == 255
    record = source[3]
    assert record["caption"] == source.caption(3) and record["boxes"].shape == (0, 4) and record["spans"] == []
    assert record["image"]().ndim == 3 and source.image_bytes(3)[:2] == b"\xff\xd8"


def test_vqa(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "COCO_val2014_000000000042.jpg")
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": [
        {"image_id": 42, "question": "What is it?", "question_id": 42000}]}))
    answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1}
               for n, answer in enumerate(["cat"] * 7 + ["dog"] * 3)]
    annotation = {"question_id": 42000, "image_id": 42, "multiple_choice_answer": "cat", "answers": answers}
    spec = {"kind": "vqa", "json_path": "q.json", "image_folder": "."}

    def read(annotations):
        (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
        return make_source(spec | {"annotations_path": "a.json"}, str(tmp_path))
    record = read([annotation])[0]
    assert record["image"]().shape == (6, 8, 3) and record["image_id"] == 42000 and record["about"] == {"image_id": 42}
    assert record["questions"] == [{"question": "What is it?", "answer": "cat", "answers": ["cat"] * 7 + ["dog"] * 3}]
    assert make_source(spec, str(tmp_path))[0]["questions"][0]["answers"] == []       # a test split has no answers
    with pytest.raises(ValueError, match=r"questions\[0\]: found no annotation of question 42000"):
        read([annotation | {"question_id": 1}])
    for question in ("", " \t"):
        (tmp_path / "q.json").write_text(json.dumps({"questions": [{"image_id": 42, "question": question, "question_id": 1}]}))
        with pytest.raises(ValueError, match=r"questions\[0\]: found an empty question"):
            make_source(spec, str(tmp_path))


def test_missing_images_of_texts_are_named_when_the_file_is_opened(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "2.png")
    (tmp_path / "c.json").write_text(json.dumps({
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(4)],
        "annotations": [{"image_id": n, "caption": "a"} for n in (2, 3, 1, 3)]}))               # of image 0 nothing is said
    (tmp_path / "q.json").write_text(json.dumps({"questions": [
        {"image_id": n, "question": "is it?", "question_id": 10 + n} for n in (1, 2, 3)]}))
    for spec in ({"kind": "coco_captions", "json_path": "c.json", "image_folder": "."},
                 {"kind": "vqa", "json_path": "q.json", "image_folder": ".", "file_pattern": "{id}.png"}):
        with pytest.raises(ValueError, match=r"(?s)problems: 2\n.*image 3: no file .*3\.png") as found:
            make_source(spec, str(tmp_path))
        assert "image 1: no file" in str(found.value)
        with collecting() as problems:
            source = make_source(spec, str(tmp_path))
        assert len(problems) == 2 and len(source) == 1 and source[0]["image"]().shape == (6, 8, 3)
        with pytest.raises(ValueError, match="problems: 3"):
            make_source(spec | {"image_folder": "nowhere"}, str(tmp_path))
    with pytest.raises(ValueError, match=r"file_pattern: found '\{number\}.png', expected a name with \{id\}"):
        make_source(spec | {"file_pattern": "{number}.png"}, str(tmp_path))
