"""The reader of Flickr30k Entities: the official val split, the reference's reading of it, and what is wrong named."""
import tarfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.flickr_entities import FlickrEntities, parse_sentence
from input_pipeline.registry import make_source

LINE = "[/EN#0/notvisual It] shows [/EN#7/people/other A small child] on [/EN#8/scene grass] ."


@pytest.fixture(scope="module")
def official(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flickr30k")
    with tarfile.open(shared_data("flickr30k_entities/entities_val_1000.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    return FlickrEntities(folder, split=str(shared_data("flickr30k_entities/val.txt")))


def test_the_official_split_counts(official):
    assert len(official) == 4986
    assert sum(len(official[n]["about"]["phrases"]) for n in range(len(official))) == 14_433


def test_equal_to_the_reference(official, load_reference):
    case = load_reference("evaluation/flickr.json")
    place = {(record["about"]["original_img_id"], record["about"]["sentence_id"]): n
             for n, record in enumerate(official[n] for n in range(len(official)))}
    for expected in case["sentences_detail"]:
        index = place[expected["image_id"], expected["sentence_id"]]
        record = official[index]
        assert record["caption"] == official.caption(index) == expected["caption"]
        assert official.image_size(index) == tuple(expected["size_wh"][::-1])
        found = [(phrase["id"], phrase["types"], list(phrase["span"])) for phrase in record["about"]["phrases"]]
        assert found == [(p["id"], tuple(p["types"]), p["chars"]) for p in expected["phrases"]]
    assert len(case["sentences_detail"]) == sum(
        record["about"]["original_img_id"] in case["image_ids"] for record in (official[n] for n in range(len(official))))


def test_photographs(shared_data):
    folder = shared_data("flickr30k_entities/sample")
    source = make_source({"kind": "flickr_entities", "folder": "sample", "image_folder": "sample/Images", "name": "eight"},
                         str(folder.parent))
    assert source.name == "eight" and source.class_names == () and len(source) == 39
    for index in range(0, len(source), 5):
        record = source[index]
        assert record["image"]().shape == (*source.image_size(index), 3)
        assert len(record["boxes"]) == len(record["spans"]) == len(record["classes"])
        assert source.image_bytes(index) == (folder / "Images" / source.file_name(index)).read_bytes()


def test_parse_sentence():
    caption, phrases = parse_sentence(f"  {LINE}\n")
    assert caption == "It shows A small child on grass ."
    assert [(caption[slice(*p.span)], p.id, p.types) for p in phrases] == [
        ("It", "0", ("notvisual",)), ("A small child", "7", ("people", "other")), ("grass", "8", ("scene",))]
    assert parse_sentence("[/EN#1/other a cup ] here") == ("a cup here", [((0, 5), "1", ("other",))])
    assert parse_sentence("") == ("", [])


@pytest.mark.parametrize("line, message", [
    ("[a dog] runs", r"found '\[a', expected a phrase to begin with"),
    ("[/a/b dog]", r"found '\[/a/b', expected"),
    ("[/EN#3 a dog]", r"found '\[/EN#3', expected"),
    ("[/EN#3/animals a dog runs", "a phrase of entity 3 that does not end"),
    ("see [/EN#3/animals ]", "a phrase of entity 3 without words")])
def test_bad_sentences(line, message):
    with pytest.raises(ValueError, match=message):
        parse_sentence(line)


def thing(names, *bndboxes):
    corners = "".join("<bndbox>" + "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
                      + "</bndbox>" for box in bndboxes)
    return f"<object>{''.join(f'<name>{name}</name>' for name in names)}{corners or '<nobndbox>1</nobndbox>'}</object>"


@pytest.fixture
def release(tmp_path):
    """Writes a photograph of 60 × 40 pixels with its two files; returns the folder of all."""
    def write(objects, sentences=LINE, number="9000000001"):
        for name, text in ((f"Sentences/{number}.txt", sentences), (f"Annotations/{number}.xml", (
                f"<annotation><filename>{number}.jpg</filename><size><width>60</width><height>40</height></size>{objects}"
                "</annotation>"))):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (60, 40), "green").save(tmp_path / "images" / f"{number}.jpg")
        return tmp_path
    return write


def test_a_row_for_every_box_of_a_phrase(release):
    folder = release(thing(("7",), (1, 2, 30, 40)) + thing(("7", "9"), (10, 5, 20, 15)) + thing(("8",)),
                     f"[/EN#8/scene Grass] .\n\n{LINE}\n[/EN#9/other toys] of [/EN#7/people the child]")
    source = FlickrEntities(folder, folder / "images")
    assert len(source) == 2 and source[1]["image"]().shape == (40, 60, 3)
    record = source[0]
    assert record["image_id"] == 0
    assert record["boxes"].tolist() == [[1, 2, 29, 39], [10, 5, 19, 14]]        # the last pixel, not the edge behind it
    assert record["boxes"].dtype == np.float32 and record["classes"].tolist() == [-1, -1]
    assert record["spans"] == [[(9, 22)], [(9, 22)]]
    assert record["about"] == {"original_img_id": 9000000001, "sentence_id": 2, "phrases": [
        {"span": (9, 22), "id": "7", "types": ("people", "other"), "boxes": [[1, 2, 30, 40], [10, 5, 20, 15]]}]}
    assert source[1]["boxes"].tolist() == [[10, 5, 19, 14], [1, 2, 29, 39], [10, 5, 19, 14]]
    assert [source.caption(1)[b:e] for [(b, e)] in source[1]["spans"]] == ["toys", "the child", "the child"]
    assert source[1]["about"]["sentence_id"] == 3


def test_split_is_below_the_folder_or_as_given(release):
    release(thing(("7",), (1, 2, 30, 40)), number="12")
    folder = release(thing(("7",), (1, 2, 30, 40)), number="3")
    numbers = [one["about"]["original_img_id"] for one in FlickrEntities(folder)]
    assert numbers == [3, 12]
    (folder / "val.txt").write_text("12\n")
    for split in ("val.txt", str(folder / "val.txt")):
        source = FlickrEntities(folder, split=split)
        assert len(source) == 1 and source[0]["about"]["original_img_id"] == 12
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="found no photograph"):
        FlickrEntities(folder, split="empty.txt")
    with pytest.raises(ValueError, match=r"test.txt: cannot read the split, looked in .* too"):
        FlickrEntities(folder, split="test.txt")


def test_what_is_missing_is_named(release, tmp_path):
    with pytest.raises(ValueError, match="Annotations: no such folder"):
        FlickrEntities(tmp_path / "nowhere")
    folder = release(thing(("7",), (1, 2, 30, 40)))
    with pytest.raises(ValueError, match="pictures: no such folder"):
        FlickrEntities(folder, folder / "pictures")
    (folder / "images" / "9000000001.jpg").unlink()
    with pytest.raises(ValueError, match=r"image 9000000001: no file .*images/9000000001.jpg"):
        FlickrEntities(folder, folder / "images")
    with pytest.raises(ValueError, match="opened without image_folder"):
        FlickrEntities(folder)[0]["image"]()
    (folder / "Sentences" / "9000000001.txt").unlink()
    (folder / "list.txt").write_text("9000000001\n5\n")
    with pytest.raises(ValueError, match=r"(?s)problems: 3.*Sentences/9000000001.txt: cannot read.*Annotations/5.xml: cannot"):
        FlickrEntities(folder, split="list.txt")
    release(thing(("7",), (1, 2, 30, 40)))
    (folder / "Sentences" / "9000000001.txt").write_bytes(b"caf\xe9")
    (folder / "list.txt").write_text("9000000001\nnone\n")
    with pytest.raises(ValueError, match=r"(?s)problems: \d.*9000000001.txt: not UTF-8.*photograph 'none': expected a number"):
        FlickrEntities(folder, split="list.txt")


@pytest.mark.parametrize("objects, sentences, message", [
    (thing(("7",), (70, 2, 90, 40)), LINE, r"9000000001.xml, entity 7: found a box outside the image"),
    (thing(("7",), (9, "x", 9, 9)), LINE, "9000000001.xml: expected size/height"),
    ("<object>", LINE, "9000000001.xml: not XML"),
    (thing(("7",), (1, 2, 30, 40)), f"{LINE}\n[/EN#7/people a", r"9000000001.txt, line 2: found a phrase of entity 7"),
    (thing(("7",)), LINE, "found no sentence with a phrase that has boxes")])
def test_bad_files_are_named(release, objects, sentences, message):
    with pytest.raises(ValueError, match=message):
        FlickrEntities(release(objects, sentences))


def test_repair_drops_rows_and_keeps_the_phrase_for_scoring(release):
    folder = release(thing(("7",), (70, 2, 90, 40)) + thing(("8",), (1, 1, 9, 9)))
    record = FlickrEntities(folder, bad_boxes="repair")[0]
    assert record["boxes"].tolist() == [[1, 1, 8, 8]] and record["spans"] == [[(26, 31)]]
    assert [phrase["boxes"] for phrase in record["about"]["phrases"]] == [[[70, 2, 90, 40]], [[1, 1, 9, 9]]]
