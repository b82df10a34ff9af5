"""The label doctor: what it finds in broken data, what it leaves in peace, and its page."""
import json
import re

import numpy as np
import pytest
from PIL import Image

from glipv2_jax import data_arguments
from glipv2_jax.inspect import command, leaks, records, summary
from tests.conftest import REPOSITORY

# ml_collections loads config files by the old way of Python.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SMALL_SETTINGS = ["--config.data.canvases=((64, 64),)", "--config.data.augment=resize(64, 64)"]


def picture(path, size=(40, 30), seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def image(image_id, name, **more):
    return {"id": image_id, "file_name": name, "width": 40, "height": 30, **more}


def annotation(annotation_id, image_id, bbox=(2, 3, 10, 8), category_id=3, **more):
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


@pytest.fixture
def folder(tmp_path):
    for n, name in enumerate("abcd"):
        picture(tmp_path / f"{name}.png", seed=n)
    return tmp_path


def coco(folder, annotations, images=None, name="train.json"):
    images = images or [image(n, f"{letter}.png") for n, letter in enumerate("abcd")]
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": 3, "name": "red cell"}, {"id": 7, "name": "<b>white</b> cell"}]}
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def inspected(folder, *arguments):
    """(report, page) of the command; its exit status must agree with the report."""
    output = folder / "out"
    arguments = [*map(str, arguments), f"--output={output}", "--samples=3", *SMALL_SETTINGS]
    try:
        command.main(arguments)
        status = 0
    except SystemExit as error:
        status = error.code
    assert status in (0, 1), status
    report = json.loads((output / "report.json").read_text())
    assert status == (report["problems"] > 0)
    return report, (output / "sheet.html").read_text()


def test_sound_data(folder, capsys):
    path = coco(folder, [annotation(1, 0), annotation(2, 0, (0, 0, 40, 30), 7), annotation(3, 1),
                         annotation(4, 1, iscrowd=1)])
    report, page = inspected(folder, path, f"--images={folder}")
    assert report["problems"] == 0
    found = report["sources"][0]
    assert [(c["name"], c["boxes"], c["images"]) for c in found["classes"]] == [("red cell", 2, 2), ("<b>white</b> cell", 1, 1)]
    # 10 × 8 and twice; 40 × 30 = 1200 is above 32² = 1024.
    assert found["box_sizes"] == {"small": 2, "medium": 1, "large": 0}
    assert found["boxes_per_record"] == [0, 0, 0, 1, 1, 2]       # 0 0 1 2, the lower one of two neighbours
    assert found["notes"]["crowd boxes: scored, never trained on"] == 1
    assert found["notes"]["records without a box"] == 2
    assert "Nothing bad found" in capsys.readouterr().out
    assert "<b>white" not in page and "&lt;b&gt;white" in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert "://" not in page                                    # nothing is loaded from anywhere


def test_everything_wrong_with_a_coco_file_is_listed_at_once(folder):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:900])
    picture(folder / "c.png", (20, 15))
    bad = [annotation(100 + n, 0, (10, 10, -4, 5)) for n in range(30)]
    bad += [annotation(1, 0, (5, 5, 0, 4)), annotation(2, 0, (90, 5, 4, 4)), annotation(3, 0, category_id=99),
            annotation(4, 55), annotation(5, 9), annotation(6, 3), annotation(6, 3)]
    images = [*(image(n, f"{letter}.png") for n, letter in enumerate("abcd")), image(3, "d.png"), image(9, "none.png"),
              image(10, "a.png", width=0)]
    report, page = inspected(folder, coco(folder, bad, images), f"--images={folder}")
    problems = "\n".join(report["sources"][0]["problems"])
    assert problems.count("an inverted box") == 30              # all of them, not the first ten
    for words in ("annotation 1 of image 0 .*an empty box", "annotation 2 of image 0 .*outside the image",
                  "annotation 3 of image 0 .*category_id 99", "annotation 4 of image 55.*no such image",
                  r"images\[4\]: id 3 was used before", r"annotations\[36\]: id 6 was used before",
                  r"image 10 \(a.png\): found size 0x30", "image 9: no file .*none.png",
                  r"b.png: cannot read the image: .*truncated", r"c.png: image 2: found 20x15 .*expected 40x30"):
        assert re.search(words, problems), words
    assert report["problems"] == 40
    # What is left is read, counted and drawn: the one box of image 3, beside the box of the missing image 9.
    assert report["sources"][0]["records"] == 4
    assert sum(c["boxes"] for c in report["sources"][0]["classes"]) == 1
    assert "data:image/jpeg" in page


def grounding(folder, caption, spans, **more):
    pair = image(5, "a.png", caption=caption, **more)
    content = {"images": [pair], "annotations": [
        {"id": n, "image_id": 5, "bbox": [2, 3, 10, 8], "area": 80, "iscrowd": 0, "category_id": 1, "tokens_positive": of_box}
        for n, of_box in enumerate(spans)], "categories": [{"id": 1, "name": "object"}]}
    (folder / "grounding.json").write_text(json.dumps(content))
    return str(folder / "grounding.json")


@pytest.mark.parametrize("span, words", [
    ([2, 5], None), ([0, 5], None), ([6, 12], None),            # "dog", "a dog", "runs  "
    ([2, 4], "cuts a word, 'do'"), ([3, 5], "cuts a word, 'og'"), ([5, 6], "on white space"),
    ([2, 50], "expected 0 ≤ begin < end ≤ 17|found span"), ([4, 4], "found span"),
])
def test_spans(folder, span, words):
    report, _ = inspected(folder, grounding(folder, "a dog runs  fast.", [[span], [[2, 5]]]), f"--images={folder}")
    problems = report["sources"][0]["problems"]
    assert len(problems) == (words is not None)
    assert words is None or re.search(words, problems[0])


def test_phrases_and_words_beyond_the_prompt(folder):
    path = grounding(folder, "a dog and a cat", [[[0, 5]], [[2, 5]], [[10, 15]]])
    report, _ = inspected(folder, path, f"--images={folder}", "--config.data.max_tokens=6")
    found = report["sources"][0]
    assert found["phrases"] == {"a dog": 1, "dog": 1, "a cat": 1}
    assert found["prompt_tokens"] == [7] * 6                    # [CLS] a dog and a cat [SEP]
    assert found["notes"]["captions longer than the 6 tokens"] == 1
    # [CLS] a dog and a [SEP]: a phrase whose end is cut off loses all of its words.
    assert found["notes"]["boxes whose words come after the 6 tokens"] == 1


def test_a_prompt_of_all_classes_that_does_not_fit(folder):
    path = coco(folder, [annotation(1, 0)])
    arguments = path, f"--images={folder}", "--config.data.num_negatives=-1"
    report, _ = inspected(folder, *arguments)
    # [CLS] red cell . < b > white < / b > cell [SEP]
    assert report["problems"] == 0 and report["sources"][0]["tokens_of_all_classes"] == 14
    report, page = inspected(folder, *arguments, "--config.data.max_tokens=5")
    assert "14 tokens in the prompt of all 2 classes, expected at most 5: 1 classes are cut" in \
        report["sources"][0]["problems"][0]
    assert "set classes_per_prompt" in page                     # why there are no samples


def test_leaks(folder):
    ours = coco(folder, [annotation(1, 0), annotation(2, 1)])
    other = folder / "other"
    (other / "sub").mkdir(parents=True)
    (other / "renamed.png").write_bytes((folder / "a.png").read_bytes())
    picture(other / "sub" / "b.png", seed=50)
    picture(other / "z.png", seed=51)
    theirs = coco(other, [annotation(1, 77)], [image(77, "renamed.png"), image(78, "sub/b.png"), image(2, "z.png")])
    against = f"--against={theirs}", f"--against_images={other}"
    report, _ = inspected(folder, ours, f"--images={folder}", *against)
    (overlap,) = report["overlap"]
    assert (overlap["ids"], overlap["files"], overlap["pixels"]) == (1, 1, None)
    assert len(overlap["problems"]) == 1 and "by their file name" in overlap["problems"][0]
    assert "image ids 1" in overlap["problems"][0] and "image ids 2" in overlap["notes"][0]
    report, _ = inspected(folder, ours, f"--images={folder}", "--hash", *against)
    (overlap,) = report["overlap"]
    assert (overlap["ids"], overlap["files"], overlap["pixels"]) == (1, 1, 1)
    assert [("pixels themselves" in p, "image ids 0" in p) for p in overlap["problems"]] == [(True, True)]
    assert "with other pixels: image ids 1" in overlap["notes"][0]


def test_records_of_any_source():
    """What a reader lets pass is found in its records."""
    class Source:
        name, class_names, category_ids = "given", ("cat", "dog"), (1, 2)
        boxes = ((0, 0, 9, 9), (5, 5, 2, 9), (5, 5, 4, 9), (50, 0, 60, 9), (0, 0, 44, 9), (0, 0, 9, 9), (3, 3, 3, 8))

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 2:
                raise KeyError("box")
            return {"image": np.zeros((30, 40, 3), np.uint8), "image_id": 8, "boxes": np.array(self.boxes, np.float32),
                    "classes": np.array([0, 0, 0, 0, 0, 0, 1 if index == 0 else 2])}

    from input_pipeline.tokenizer import Tokenizer
    findings = records.Findings("given", Source.class_names)
    records.inspect(Source(), findings, Tokenizer(), max_tokens=64, num_negatives=10)
    of_first = [p for p in findings.problems if "image 8" in p][:4]
    assert [p.split("found ")[1].split(",")[0] for p in of_first] == [
        "an inverted box", "a box of zero area", "a box outside the 40x30 image", "a box over the border of the 40x30 image"]
    assert sum("classes 0 to 2, expected 0 to 1" in p for p in findings.problems) == 1
    assert any("record 2: KeyError: 'box'" in p for p in findings.problems)
    assert any("image id 8 stands in 2 records" in p for p in findings.problems)
    assert findings.notes["boxes that stand twice in their record, with the same words"] == 2
    assert findings.notes["boxes no wider or higher than a pixel: not trained on"] == 2
    assert findings.class_boxes.tolist() == [6, 1]


def test_fold_and_quantiles():
    problems = [f"a.json: annotation {n} of image {n} (x y {n}.jpg): found an inverted box, bbox [1, {n}]" for n in range(9)]
    groups = summary.folded([*problems, "image 3: no file /x/y.png"])
    assert [count for count, _ in groups] == [9, 1] and groups[0][1] == problems[:3]
    assert summary.quantiles({1: 50, 2: 25, 10: 25}) == [1, 1, 1, 2, 10, 10]
    assert summary.quantiles({}) == []


def test_unknown_hashes_are_no_overlap():
    ours, theirs = records.Findings("a", ()), records.Findings("b", ())
    for findings in (ours, theirs):
        findings.image_ids.extend([1, 2])
        findings.files.extend([0, 5])
        findings.pixels.extend([0, 0])
    found = leaks.overlap(ours, theirs)
    assert (found["ids"], found["files"], found["pixels"]) == (2, 1, None)


def test_kind_and_options(folder):
    path = coco(folder, [annotation(1, 0)])
    report, _ = inspected(folder, "--format=coco_json", f"--json_path={path}", f"--image_folder={folder}",
                          "--keep_empty=false", '--class_names={"red cell": "erythrocyte"}')
    assert report["sources"][0]["records"] == 1
    assert report["sources"][0]["classes"][0]["name"] == "erythrocyte"


def test_config_with_its_evaluation(tmp_path):
    report, page = inspected(tmp_path, f"--config={REPOSITORY}/configs/quickstart.py", "--limit=4")
    assert report["problems"] == 0
    assert [s["records"] for s in report["sources"]] == [4] * 5
    assert report["sources"][0]["notes"]["only 4 of 100,000 records were read"] == 1
    assert len(report["overlap"]) == 2 * 3                      # each training source with each of evaluation
    assert page.count("<figure>") == 3


@pytest.mark.parametrize("content, kind", [
    ({"images": [], "annotations": [], "categories": []}, "coco_json"),
    ({"images": [], "annotations": [{"bbox": [], "tokens_positive": []}], "categories": []}, "grounding_json"),
    ({"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}, "coco_captions"),
    ({"questions": []}, "vqa"),
    ({"filename": "a.png", "grounding": {}}, "odvg"),
])
def test_kinds_are_recognised(tmp_path, content, kind):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content))
    assert data_arguments.spec_of(path, "images")["kind"] == kind
    with pytest.raises(ValueError, match="expected --images=FOLDER"):
        data_arguments.spec_of(path)


@pytest.mark.parametrize("arguments, words", [
    (["absent.json", "--images=."], "absent.json: no such file"),
    (["configs/x.py"], "a config is given as --config"),
    (["--format=nothing"], "--format: found 'nothing', expected one of"),
])
def test_arguments_that_cannot_work(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=words):
        command.main(arguments)


@pytest.mark.parametrize("name, splits", [("odinw_raccoon", 2), ("odinw_bccd", 2), ("odinw_chess", 2), ("coco_small", 2)])
def test_real_data_is_sound(name, splits, tmp_path):
    data = REPOSITORY.parent / "shared" / "data" / name
    if not data.is_dir():
        pytest.skip("no shared data")
    prefix = "instances_" if name == "coco_small" else ""
    train, val = (data / "annotations" / f"{prefix}{split}.json" for split in ("train", "val"))
    report, _ = inspected(tmp_path, train, f"--images={data}/images/train", f"--against={val}",
                          f"--against_images={data}/images/val", "--hash", "--limit=40")
    assert report["problems"] == 0, report
    assert report["overlap"][0]["pixels"] == 0
