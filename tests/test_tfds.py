"""TensorFlow Datasets: its own builders as a source, our builders for what it lacks; tiny files, no network.

The official builders run as they are, on folders in the form of what they would download.
"""
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.lvis import lvis_dataset_builder

from input_pipeline import image_ops, pipeline
from input_pipeline.coco_classes import COCO_IDS
from input_pipeline.coco_json import CocoJson
from input_pipeline.registry import make_source
from input_pipeline.sources import ClassTable
from input_pipeline.tfds_builders import odinw
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.voc import Voc
from tests.test_prepare import assert_equal

SIZES = {139: (75, 50), 285: (41, 63), 632: (64, 48)}          # width, height
BOXES = [(1.25, 2.5, 30.17, 40.99), (0, 0, 41, 63), (7, 9, 0, 5), (3.33, 4.01, 1.5, 20)]


def picture(path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path)
    return path


def prepare(builder, folder, file_format="array_record"):
    config = tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
    builder.download_and_prepare(file_format=file_format, download_config=config)
    return builder


def reader(folder, builder, split, **options):
    """Source over a split of what `prepare` wrote to folder/tfds."""
    return make_source({"kind": "tfds", "builder": builder, "split": split, "data_dir": "tfds", **options}, str(folder))


def write(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# COCO.

def coco_files(folder, split):
    """The tree of an unpacked download of COCO: images and instances of one split."""
    for number, size in SIZES.items():
        picture(folder / "images" / split / f"{number:012d}.jpg", size, number)
    images = [{"id": number, "file_name": f"{number:012d}.jpg", "width": size[0], "height": size[1]}
              for number, size in SIZES.items()]
    ids = [90, 1, 44, 13]
    annotations = [{"id": n + 1, "image_id": 285 if n else 139, "category_id": ids[n], "bbox": list(box), "area": 9,
                    "iscrowd": int(n == 1)} for n, box in enumerate(BOXES)]
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": number, "name": name} for name, number in COCO_IDS.items()]}
    write(folder / "annotations" / "annotations" / f"instances_{split}.json", **content)
    write(folder / "annotations" / "annotations" / f"image_info_{split}.json", **content)


@pytest.fixture
def downloads(monkeypatch):
    """Function of {part of an address: folder}: what the builders think they have downloaded and unpacked."""
    def serve(folders):
        def found(_, addresses):
            return {key: next(str(folder) for part, folder in folders.items() if part in address)
                    for key, address in addresses.items()}
        monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", found)
    return serve


@pytest.fixture
def coco(tmp_path, downloads):
    for split in ("train2017", "val2017", "test2017"):
        coco_files(tmp_path / "coco", split)
    downloads({"zips/": tmp_path / "coco" / "images", "annotations/": tmp_path / "coco" / "annotations"})
    prepare(tfds.builder("coco/2017", data_dir=tmp_path / "tfds"), tmp_path)
    return reader(tmp_path, "coco/2017", "validation")


def test_coco_ids_are_those_of_the_official_file():
    path = pathlib.Path(__file__).parent / "reference" / "coco_detections.json"
    categories = json.loads(path.read_text())["ground_truth"]["categories"]
    assert {entry["name"]: entry["id"] for entry in categories} == COCO_IDS


def test_coco_equals_its_own_file(tmp_path, coco):
    theirs = CocoJson(tmp_path / "coco/annotations/annotations/instances_val2017.json",
                      tmp_path / "coco/images/val2017", bad_boxes="repair")
    assert (coco.class_names, coco.category_ids) == (theirs.class_names, theirs.category_ids)
    assert coco.category_ids[-1] == 90 and len(coco) == len(theirs) == 3 and coco.name == "coco/2017:validation"
    place = {theirs[index]["image_id"]: index for index in range(3)}
    for index in range(3):
        record = coco[index]
        other = place[record["image_id"]]
        assert_equal(record, theirs[other])
        assert coco.image_size(index) == theirs.image_size(other) == SIZES[record["image_id"]][::-1]
        assert coco.image_bytes(index) == theirs.image_bytes(other) and coco.file_name(index) == theirs.file_name(other)
    with pytest.raises(IndexError, match="record 3, expected 0 to 2"):
        coco[3]


def test_sizes_and_prompts_need_no_pixels(coco, monkeypatch):
    monkeypatch.setattr(image_ops, "decode", lambda *_, **__: pytest.fail("decoded"))
    assert sorted(coco.image_size(index)[::-1] for index in range(3)) == sorted(SIZES.values())
    assert [len(coco[index]["boxes"]) for index in range(3)].count(0) == 1


def test_coco_without_area_is_an_error_where_asked(tmp_path, coco):
    strict = reader(tmp_path, "coco/2017", "validation", bad_boxes="error")
    bad = next(index for index in range(3) if coco[index]["image_id"] == 285)
    with pytest.raises(ValueError, match=r"coco/2017/1.1.0 validation, example \d: found an inverted or empty box"):
        strict[bad]


def test_training_prompts_name_the_classes(coco):
    tokenizer = Tokenizer()
    batches = pipeline.train_batches([coco], [1.0], seed=0, start_step=0, batch_size=3, canvases=[(64, 64), (64, 96)],
                                     augment="resize(48, 64)", max_tokens=256, max_boxes=4, num_negatives=3,
                                     class_table=ClassTable.from_sources([coco]), tokenizer=tokenizer)
    brush, seen = tokenizer.encode("toothbrush", 8).ids[1], set()
    for _ in range(4):
        batch = next(batches)
        named = batch["token_ids"][batch["positive_map"].any(1)]
        seen |= set(named.tolist())
    batches.close()
    assert brush in seen


def test_formats_without_random_access_say_what_to_do(tmp_path, coco):
    prepare(tfds.builder("coco/2017", data_dir=tmp_path / "old"), tmp_path, file_format="tfrecord")
    how = r'.*download_and_prepare\(file_format="array_record"\)'
    with pytest.raises(ValueError, match="found the file format tfrecord" + how):
        reader(tmp_path, "coco/2017", "train", data_dir="old")
    with pytest.raises(ValueError, match="found nothing prepared in" + how):
        reader(tmp_path, "coco/2017", "train", data_dir="none")
    with pytest.raises(ValueError, match="found the splits .*'train', 'validation'.*, expected 'dev'"):
        reader(tmp_path, "coco/2017", "dev")
    with pytest.raises(ValueError, match=r"found the options \['with_masks'\], expected of them \[\]"):
        reader(tmp_path, "coco/2017", "train", with_masks=True)
    with pytest.raises(ValueError, match="coco/1999: TFDS knows no such data set or configuration"):
        reader(tmp_path, "coco/1999", "train")
    assert len(reader(tmp_path, "coco/2017", "train[:2]")) == 2


def test_other_data_sets_are_refused(tmp_path):
    folder = tmp_path / "other" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), "label": np.int64})
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name="other", split="train",
                                             filetype_suffix="array_record")
    split = tfds.core.SplitInfo(name="train", shard_lengths=[1], num_bytes=1, filename_template=template)
    picture(tmp_path / "a.png", (9, 9))
    from array_record.python.array_record_module import ArrayRecordWriter
    writer = ArrayRecordWriter(str(folder / "other-train.array_record-00000-of-00001"), "group_size:1")
    writer.write(features.serialize_example({"image": str(tmp_path / "a.png"), "label": 1}))
    writer.close()
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split], check_data=False)
    with pytest.raises(ValueError, match=r"found features \['image', 'label'\], expected 'objects' of one of coco,"):
        reader(tmp_path, "other:1.0.0", "train", data_dir="")


# LVIS: its builder runs on Apache Beam; here its features and its code of an example take what Beam would.

def test_lvis(tmp_path, monkeypatch):
    mask = np.zeros((50, 75, 1), np.uint8)
    mask[2:40, 1:30] = 255
    path = picture(tmp_path / "a.jpg", (75, 50))
    row = {"width": 75, "height": 50}

    def examples(self, _):
        box = lvis_dataset_builder._build_bbox(row, 1.25, 2.5, 30.17, 40.99)
        some = {"image": path, "image/id": 139, "neg_category_ids": [2, 1202], "not_exhaustive_category_ids": [5],
                "objects": [{"id": 1, "area": 9, "label": 1, "segmentation": mask, "bbox": box}]}
        none = some | {"image/id": 140, "neg_category_ids": [], "objects": []}
        return {"validation": iter([(139, some), (140, none)])}
    monkeypatch.setattr(lvis_dataset_builder.Builder, "_split_generators", examples)
    prepare(tfds.builder("lvis", data_dir=tmp_path / "tfds"), tmp_path)
    source = reader(tmp_path, "lvis", "validation", with_masks=True)
    assert len(source.class_names) == 1203 and source.category_ids == tuple(range(1, 1204))
    records = {source[index]["image_id"]: source[index] for index in range(2)}
    record = records[139]
    assert record["negatives"].tolist() == [2, 1202] and record["negatives"].dtype == np.int32
    np.testing.assert_array_equal(record["boxes"], image_ops.boxes_from_xywh([[1.25, 2.5, 30.17, 40.99]]))
    assert record["classes"].tolist() == [1] and (record["masks"][0] == (mask[..., 0] > 0)).all()
    assert records[140]["masks"].shape == (0, 50, 75) and records[140]["boxes"].shape == (0, 4)
    assert {source.file_name(index) for index in range(2)} == {"000000000139.jpg", "000000000140.jpg"}
    assert "masks" not in reader(tmp_path, "lvis", "validation")[0]


# Pascal VOC.

def test_voc_equals_its_own_files(tmp_path, downloads):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    names = {"train": "000012", "val": "000005", "test": "000001"}
    for split, name in names.items():
        picture(root / "JPEGImages" / f"{name}.jpg", (50, 37))
        thing = ("<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult><bndbox>"
                 "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>")
        objects = thing.format("dog", 0, 4, 24, 19, 37) + thing.format("person", 1, 1, 1, 50, 37)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>50</width><height>37</height></size>{objects}"
            "</annotation>")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(name + "\n")
    downloads({"VOC": tmp_path})
    prepare(tfds.builder("voc/2007", data_dir=tmp_path / "tfds"), tmp_path)
    for keep in (False, True):
        source = reader(tmp_path, "voc/2007", "train", keep_difficult=keep)
        theirs = Voc(root, split="train", keep_difficult=keep)
        assert (source.class_names, source.category_ids) == (theirs.class_names, theirs.category_ids)
        assert_equal(source[0], theirs[0] | {"image_id": 12})
        assert source[0]["boxes"].tolist()[0] == [3, 23, 18, 36] and len(source[0]["boxes"]) == 1 + keep
        assert source.file_name(0) == "000012.jpg" and source.image_size(0) == (37, 50)


# RefCOCO. TFDS's builder has pycocotools decode masks, whose arrays know no `copy`.

@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_ref_coco_expressions_name_their_box(tmp_path):
    name = "COCO_train2014_000000000285.jpg"
    picture(tmp_path / "coco_train2014" / name, (41, 63))
    anns = [{"id": n, "area": 9.0, "bbox": list(box), "category_id": 1,
             "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]]}
            for n, box in enumerate(((0, 0, 10, 10), (1.25, 2.5, 30.17, 40.99), (3, 4, 20, 20)))]

    def reference(number, ann, split, texts):
        sentences = [{"sent_id": 10 * number + n, "raw": text} for n, text in enumerate(texts)]
        return {"dataset": "refcoco", "dataset_partition": "unc", "split": split, "image_id": 285, "ref_id": number,
                "ann": anns[ann], "sentences": sentences}
    references = [reference(1, 2, "train", ["Man in red ", " "]), reference(2, 1, "train", ["zèbre", "the left one"]),
                  reference(3, 0, "val", ["a"]), reference(4, 0, "testA", ["b"]), reference(5, 0, "testB", ["c"])]
    write(tmp_path / "refcoco.json", ref=references, coco_anns={"285": {
        "info": {"file_name": name, "height": 63, "width": 41}, "anns": anns}})
    prepare(tfds.builder("ref_coco/refcoco_unc", data_dir=tmp_path / "tfds"), tmp_path)
    source = reader(tmp_path, "ref_coco/refcoco_unc", "train", with_masks=True)
    assert [source.caption(index) for index in range(len(source))] == ["Man in red", "zèbre", "the left one"]
    assert [source[index]["image_id"] for index in range(3)] == [10, 20, 21] and source.class_names == ()
    record = source[2]
    assert record["caption"] == "the left one" and record["spans"] == [[(0, 12)]] and record["classes"].tolist() == [-1]
    np.testing.assert_array_equal(record["boxes"], image_ops.boxes_from_xywh([[1.25, 2.5, 30.17, 40.99]]))
    assert record["masks"].shape == (1, 63, 41) and 500 < record["masks"].sum() < 750
    assert record["about"] == {"original_img_id": 285} and source.file_name(2) == name
    assert source.image_size(1) == (63, 41) and record["image"]().shape == (63, 41, 3)
    assert source.image_bytes(0) == (tmp_path / "coco_train2014" / name).read_bytes()
    other = reader(tmp_path, "ref_coco/refcoco_unc", "testA")
    assert "masks" not in other[0] and len(other) == 1 and other[0]["caption"] == "b" and other[0]["image_id"] == 40


# Our builders.

def equal_sources(source, theirs):
    assert len(source) == len(theirs)
    assert (source.class_names, source.category_ids) == (theirs.class_names, theirs.category_ids)
    for index in range(len(theirs)):
        assert_equal(source[index], theirs[index])
        assert source.image_bytes(index) == theirs.image_bytes(index)
        assert source.file_name(index) == theirs.file_name(index)
        assert source.image_size(index) == source[index]["image"]().shape[:2]
        if hasattr(theirs, "caption"):
            assert source.caption(index) == theirs.caption(index)


def grounding_files(folder, json_path, images, **annotation):
    picture(folder / images / "a.jpg", (64, 48))
    pairs = [{"id": number, "file_name": "a.jpg", "height": 48, "width": 64, "caption": caption, "original_img_id": 3}
             for number, caption in ((7, "a cat and a döner"), (2, "a dog"), (9, "two birds"))]
    boxes = [{"image_id": number, "bbox": box, "iscrowd": 0, "tokens_positive": spans, **annotation}
             for number, box, spans in ((7, [1, 2, 10, 12], [[0, 5]]), (7, [3.5, 4, 8, 20], [[10, 17], [0, 1]]),
                                        (2, [5, 5, 9, 9], [[2, 5]]), (9, [0, 0, 64, 48], [[0, 9]]))]
    write(folder / json_path, images=pairs, annotations=boxes, categories=[{"id": 1, "name": "object"}])


@pytest.mark.parametrize("name, json_path, images, more", [
    ("flickr30k_entities", "mdetr_annotations/final_flickr_separateGT_val.json", "flickr30k/flickr30k_images/val", {}),
    ("phrasecut", "mdetr_annotations/finetune_phrasecut_val.json", "gqa/images", {"with_masks": True}),
])
def test_grounding_builders_give_back_their_file(tmp_path, name, json_path, images, more):
    grounding_files(tmp_path, json_path, images, **({"segmentation": [[1, 2, 11, 2, 11, 14]]} if more else {}))
    prepare(tfds.builder(name, data_dir=tmp_path / "tfds"), tmp_path)
    source = reader(tmp_path, name, "validation")
    equal_sources(source, make_source({"kind": "grounding_json", "json_path": json_path, "image_folder": images} | more,
                                      str(tmp_path)))
    assert source[1]["spans"] == [[(0, 5)], [(10, 17), (0, 1)]] and ("masks" in source[0]) == bool(more)


def test_vqa_builder_gives_back_its_files(tmp_path):
    for split, subtype in (("train2014", "train2014"), ("test2015", "test2015")):
        picture(tmp_path / "coco" / split / f"COCO_{subtype}_000000000042.jpg", (30, 20))
        write(tmp_path / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json", data_subtype=subtype, questions=[
            {"question_id": 42001, "image_id": 42, "question": "What colour is it?"},
            {"question_id": 42000, "image_id": 42, "question": "Is it?"}])
    write(tmp_path / "vqa" / "v2_mscoco_train2014_annotations.json", annotations=[
        {"question_id": number, "multiple_choice_answer": "red", "answers": [{"answer": "red"}, {"answer": "blue"}]}
        for number in (42000, 42001)])
    builder = prepare(tfds.builder("vqa_v2", data_dir=tmp_path / "tfds"), tmp_path)
    assert sorted(builder.info.splits) == ["test", "train"]
    for split, name, more in (("train", "train2014", {"annotations_path": "vqa/v2_mscoco_train2014_annotations.json"}),
                              ("test", "test2015", {})):
        source = reader(tmp_path, "vqa_v2", split)
        path = f"vqa/v2_OpenEnded_mscoco_{name}_questions.json"
        equal_sources(source, make_source({"kind": "vqa", "json_path": path, "image_folder": f"coco/{name}"} | more,
                                          str(tmp_path)))
        assert [len(source[index]["questions"][0]["answers"]) for index in (0, 1)] == [2 * (split == "train")] * 2


def odinw_files(folder, *, apart=True, names=("starfish", "ray fish")):
    for split in ("train", "valid"):
        place = folder / split if apart else folder
        picture(place / f"{split}.jpg", (64, 48), len(split))
        write(place / f"{'' if apart else split + '_'}annotations_without_background.json",
              images=[{"id": 0, "file_name": f"{split}.jpg", "width": 64, "height": 48}],
              annotations=[{"id": 1, "image_id": 0, "category_id": 2, "bbox": [1, 2, 10, 12], "iscrowd": 0}],
              categories=[{"id": n + 1, "name": name} for n, name in enumerate(names)])


def test_odinw_has_a_configuration_for_each_set_of_a_folder(tmp_path):
    odinw_files(tmp_path / "odinw" / "Aquarium" / "Aquarium Combined.v2")
    odinw_files(tmp_path / "odinw" / "pistols" / "export", apart=False)
    configs = odinw.configs(tmp_path / "odinw")
    assert sorted(configs) == ["Aquarium_Aquarium_Combined.v2", "pistols_export"]
    for name, config in configs.items():
        if name.startswith("Aqu"):
            config.class_names = {"ray fish": {"suffix": " , flat"}}
        prepare(odinw.Odinw(config=config, data_dir=tmp_path / "tfds"), tmp_path)
    for name, place in (("Aquarium_Aquarium_Combined.v2", "Aquarium/Aquarium Combined.v2/valid/"),
                        ("pistols_export", "pistols/export/valid_")):
        source = reader(tmp_path, f"odinw/{name}", "validation")
        path = tmp_path / "odinw" / f"{place}annotations_without_background.json"
        equal_sources(source, CocoJson(path, path.parent))
        assert source.category_ids == (1, 2)
        assert getattr(source.phrases[1], "suffix", None) == (" , flat" if name.startswith("Aqu") else None)
    with pytest.raises(ValueError, match="found no .*annotations_without_background.json below"):
        odinw.configs(tmp_path / "tfds")


def test_builders_name_what_is_missing_or_wrong(tmp_path):
    (tmp_path / "empty" / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match="(?s)found none of mdetr_annotations/final_flickr_sep.*zenodo"):
        prepare(tfds.builder("flickr30k_entities", data_dir=tmp_path / "tfds"), tmp_path / "empty")
    grounding_files(tmp_path, "mdetr_annotations/final_flickr_separateGT_val.json", "flickr30k/flickr30k_images/val")
    (tmp_path / "flickr30k/flickr30k_images/val/a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"separateGT_val, record 0: .*a\.jpg: cannot read the image.*glipv2 inspect"):
        prepare(tfds.builder("flickr30k_entities", data_dir=tmp_path / "tfds"), tmp_path)
    odinw_files(tmp_path / "odinw" / "one")
    config = odinw.configs(tmp_path / "odinw")["one"]
    path = pathlib.Path(config.folder) / "valid" / "annotations_without_background.json"
    path.write_text(path.read_text().replace("starfish", "crab"))
    with pytest.raises(ValueError, match=r"found classes \['crab', 'ray fish'\] in 'validation' and \['starfish'"):
        prepare(odinw.Odinw(config=config, data_dir=tmp_path / "tfds"), tmp_path)


def test_prepared_records_of_a_tfds_source_equal_it(tmp_path):
    from glipv2_jax.prepare import command
    grounding_files(tmp_path, "mdetr_annotations/final_flickr_separateGT_val.json", "flickr30k/flickr30k_images/val")
    prepare(tfds.builder("flickr30k_entities", data_dir=tmp_path / "tfds"), tmp_path)
    spec = {"kind": "tfds", "builder": "flickr30k_entities", "split": "validation", "data_dir": str(tmp_path / "tfds")}
    command.run(spec, tmp_path / "prepared", shards=2)
    equal_sources(make_source({"kind": "records", "folder": str(tmp_path / "prepared")}), make_source(spec))


def test_a_damaged_file_is_named(tmp_path):
    grounding_files(tmp_path, "mdetr_annotations/final_flickr_separateGT_val.json", "flickr30k/flickr30k_images/val")
    prepare(tfds.builder("flickr30k_entities", data_dir=tmp_path / "tfds"), tmp_path)
    shard = next((tmp_path / "tfds").rglob("*array_record*-of-*"))
    whole = bytearray(shard.read_bytes())
    whole[500] ^= 255                                          # within the first record; padding follows the last
    shard.write_bytes(whole)
    source = reader(tmp_path, "flickr30k_entities", "validation")
    with pytest.raises(ValueError, match=r"flickr30k_entities/1.0.0 validation, example 0: cannot be read.*damaged"):
        source[0]
