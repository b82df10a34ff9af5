"""`glipv2 prepare` and the source that reads what it writes: equal records, equal bytes, resume, damage, bad records."""
import concurrent.futures
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from glipv2_jax.prepare import command
from input_pipeline import records
from input_pipeline.prompts import names_of
from input_pipeline.registry import make_source
from input_pipeline.scenes import Scenes

SCENES = {"kind": "scenes", "seed": 3, "num_examples": 10, "split": "train", "canvas": [64, 96], "max_objects": 4}


def prepared(folder, spec, **options):
    command.run(spec, folder, **{"shards": 3} | options)
    return make_source({"kind": "records", "folder": str(folder)})


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("glipv2-records*")}


def assert_equal(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        if key == "image":
            ours_pixels, pixels = (v() if callable(v) else v for v in (ours[key], value))
            np.testing.assert_array_equal(ours_pixels, pixels)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(ours[key], value)
            assert ours[key].dtype == value.dtype, key
        else:
            assert ours[key] == value, key


@pytest.fixture
def coco(tmp_path):
    """Description of a COCO file with polygons, a crowd, an image without boxes, a turned photograph, negatives."""
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(4):
        exif = Image.Exif()
        exif[0x0112] = 6 if n == 1 else 1
        Image.new("RGB", (40, 30), (50 * n, 9, 99)).save(folder / f"{n}.jpg", exif=exif)
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30, "neg_category_ids": [7] if n == 3 else []}
              for n in range(4)]
    annotations = [{"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 10, 12], "iscrowd": 0,
                    "segmentation": [[1, 2, 11, 2, 11, 14]]},
                   {"id": 2, "image_id": 0, "category_id": 4, "bbox": [0, 0, 39.5, 20], "iscrowd": 1},
                   {"id": 3, "image_id": 1, "category_id": 4, "bbox": [3, 3, 5, 5], "iscrowd": 0}]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "licenses": [{"name": "MIT"}],
                                "categories": [{"id": 7, "name": "cat"}, {"id": 4, "name": "dög"}]}))
    return {"kind": "coco_json", "json_path": str(path), "image_folder": str(folder), "with_masks": True,
            "class_names": {"cat": {"suffix": " of fur"}}}


@pytest.mark.parametrize("task", ["detection", "caption", "mixed"])
def test_records_come_back_as_they_were(tmp_path, task):
    spec = SCENES | {"task": task}
    source, theirs = prepared(tmp_path / "out", spec), make_source(spec)
    assert len(source) == len(theirs) == 10
    assert (source.class_names, source.category_ids, source.name) == (theirs.class_names, theirs.category_ids, theirs.name)
    for index in range(10):
        assert_equal(source[index], theirs[index])
        assert source.image_size(index) == theirs[index]["image"].shape[:2]


def test_coco_comes_back_with_masks_crowds_negatives_and_its_own_files(tmp_path, coco):
    source, theirs = prepared(tmp_path / "out", coco, shards=2), make_source(coco)
    for index in range(4):
        assert_equal(source[index], theirs[index])
        assert source.image_bytes(index) == theirs.image_bytes(index)
        assert source.file_name(index) == f"{index}.jpg"
    assert names_of(source) == names_of(theirs) and names_of(source)[0].suffix == " of fur"
    card = source.card
    assert card["licence"] == "MIT" and card["class_boxes"] == [1, 2]
    assert (card["records"], card["images"], card["boxes"], card["masks"]) == (4, 4, 3, 3)
    assert [shard["records"] for shard in card["shards"]] == [2, 2]
    assert card["files"][0]["sha256"] == records.sha256(coco["json_path"])


def test_tensorflow_datasets_reads_a_prepared_folder(tmp_path, coco):
    import tensorflow_datasets as tfds
    prepared(tmp_path / "out", coco, shards=2)
    source = tfds.builder_from_directory(tmp_path / "out").as_data_source("records")
    assert len(source) == 4 and source[1]["boxes"].tolist() == [[3, 3, 7, 7]]


def test_the_bytes_depend_on_neither_workers_nor_parts(tmp_path):
    spec = SCENES | {"task": "caption"}
    prepared(tmp_path / "one", spec, workers=1)
    prepared(tmp_path / "many", spec, workers=4)
    for part in range(2):
        command.run(spec, tmp_path / "parts", shards=3, part=(part, 2))
        assert (tmp_path / "parts" / "dataset.json").exists() == (part == 1)
    assert len(bytes_of(tmp_path / "one")) == 3
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many") == bytes_of(tmp_path / "parts")


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    spec, out = SCENES | {"task": "detection"}, tmp_path / "out"
    read = Scenes.__getitem__

    def dies(source, index):
        if index == 7:
            raise KeyboardInterrupt
        return read(source, index)
    monkeypatch.setattr(Scenes, "__getitem__", dies)
    with pytest.raises(KeyboardInterrupt):
        command.run(spec, out, shards=3, workers=1)
    with pytest.raises(ValueError, match="found no dataset.json"):
        make_source({"kind": "records", "folder": str(out)})
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("glipv2-records*")}
    assert len(before) == 2

    was_read = []
    monkeypatch.setattr(Scenes, "__getitem__", lambda source, index: was_read.append(index) or read(source, index))
    source = prepared(out, spec)
    assert sorted(set(was_read)) == [6, 7, 8, 9] and len(source) == 10
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    monkeypatch.undo()
    prepared(tmp_path / "unbroken", spec)
    assert bytes_of(out) == bytes_of(tmp_path / "unbroken")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_folder_of_other_data_is_refused(tmp_path, capsys):
    spec, out = SCENES | {"task": "detection"}, tmp_path / "out"
    prepared(out, spec)
    command.run(spec, out, shards=3)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds other data, or was made with other options"):
        command.run(spec | {"seed": 4}, out, shards=3)
    command.run(spec, tmp_path / "half", shards=3, part=(0, 2))
    with pytest.raises(ValueError, match="unfinished preparation of other data"):
        command.run(spec, tmp_path / "half", shards=2)
    with pytest.raises(ValueError, match="found 11, expected 1 to 10"):
        command.run(spec, tmp_path / "none", shards=11)


def test_a_changed_annotation_of_a_folder_is_other_data(tmp_path):
    (tmp_path / "Annotations").mkdir()
    for name in ("a", "b"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text("<annotation/>")
    name, paths = command.source_files({"kind": "voc", "folder": str(tmp_path)}, "")[0]
    assert name == f"{tmp_path}/Annotations/**/*.xml" and len(paths) == 2
    before = command._stamp(paths)
    (tmp_path / "Annotations" / "b.xml").write_text("<annotated/> ")
    assert command._stamp(paths)[0] == before[0] and command._stamp(paths) != before


def test_two_parts_that_finish_together_write_one_card(tmp_path, capsys):
    spec, out = SCENES | {"task": "detection"}, tmp_path / "out"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part: command.run(spec, out, shards=4, part=(part, 2)), range(2)))
    assert records.verify(out) == 4
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_bad_records_are_left_out_by_name_within_the_budget(tmp_path, coco):
    path = tmp_path / "images" / "2.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"record 2: .*2\.jpg: cannot read the image.*\n1 bad records, expected at most 0"):
        prepared(tmp_path / "strict", coco, shards=2)
    source, theirs = prepared(tmp_path / "out", coco, shards=2, max_bad=1), make_source(coco)
    assert [record["image_id"] for record in map(source.__getitem__, range(3))] == [0, 1, 3]
    assert_equal(source[2], theirs[3])
    skipped = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())
    assert skipped["record"] == 2 and "2.jpg" in skipped["error"] and source.card["skipped"] == 1


def test_a_shard_without_a_good_record_is_empty(tmp_path, coco):
    for name in ("0.jpg", "1.jpg"):
        (tmp_path / "images" / name).write_bytes(b"not an image")
    source = prepared(tmp_path / "out", coco, shards=2, max_bad=2)
    assert [shard["records"] for shard in source.card["shards"]] == [0, 2]
    assert [source[index]["image_id"] for index in range(2)] == [2, 3]
    for name in ("2.jpg", "3.jpg"):
        (tmp_path / "images" / name).write_bytes(b"not an image")
    with pytest.raises(ValueError, match="found no record that can be used among 4"):
        prepared(tmp_path / "none", coco, shards=2, max_bad=4)


def test_damage_is_named(tmp_path):
    out = tmp_path / "out"
    source = prepared(out, SCENES | {"task": "detection"})
    shard = out / source.card["shards"][1]["file"]
    whole = shard.read_bytes()
    place = whole.index(source.image_bytes(4)) + 50
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1:])
    damaged = make_source({"kind": "records", "folder": str(out)})
    with pytest.raises(ValueError, match="out, record 4: cannot read record 1 of glipv2-records.array_record-00001-of-00003"):
        damaged[4]
    with pytest.raises(ValueError, match=rf"damaged shards: 1 of 3\n  {shard.name}: found sha256"):
        records.verify(out)
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{shard.name}: found .* bytes, expected .* bytes as dataset.json says"):
        make_source({"kind": "records", "folder": str(out)})
    shard.write_bytes(whole)
    assert records.verify(out) == 3
    card = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(card | {"layout": 99}))
    with pytest.raises(ValueError, match="found layout 99, expected 1"):
        make_source({"kind": "records", "folder": str(out)})


def test_command(tmp_path, coco, capsys):
    out = tmp_path / "out"
    arguments = [coco["json_path"], f"--images={coco['image_folder']}", f"--output={out}", "--shards=2", "--licence=CC BY 4.0",
                 "--with_masks=true", '--class_names={"cat": "kitten"}']
    command.main(arguments)
    assert "4 records, 4 images, 3 boxes, in 2 shards of" in capsys.readouterr().out
    assert json.loads((out / "dataset.json").read_text())["licence"] == "CC BY 4.0"
    command.main(["--verify", f"--output={out}"])
    assert "all 2 shards are as they were written" in capsys.readouterr().out
    next(out.glob("*00001-of*")).unlink()
    with pytest.raises(SystemExit, match="00001-of-00002: found no file"):
        command.main(["--verify", f"--output={out}"])


@pytest.mark.parametrize("arguments, message", [
    (["--output=x"], "expected one of DATA and --format"),
    (["--format=nothing", "--output=x"], "found 'nothing', expected one of"),
    (["--format=scenes", "--output=x", "--part=2/2"], "found '2/2', expected I/N"),
    (["--format=scenes"], "required: --output"),
])
def test_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_training_batches_are_those_of_the_data_that_was_prepared(tmp_path):
    from configs import common
    from input_pipeline import pipeline
    from input_pipeline.registry import train_options
    from input_pipeline.tokenizer import Tokenizer
    spec = SCENES | {"task": "detection"}
    prepared(tmp_path / "out", spec)
    config = common.get_config()
    config.train.batch_size, config.data.canvases, config.data.augment = 2, ((64, 96),), "resize(64, 96)"
    batches = []
    for one in (spec, {"kind": "records", "folder": str(tmp_path / "out")}):
        options = train_options(config, [one], [make_source(one)], Tokenizer())
        found = pipeline.train_batches(**options, start_step=0)
        batches.append(list(itertools.islice(found, 2)))
    for ours, theirs in zip(*batches):
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
