"""Detector: the reference's detections, labels that stay with their names, boxes that return to the photograph."""
import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from glipv2_jax.convert.convert import convert
from glipv2_jax.convert.torch_file import write_torch
from glipv2_jax.detection.boxes import iou_matrix
from glipv2_jax.predict import Detector
from input_pipeline.tokenizer import Tokenizer
from tests import reference_models
from tests.conftest import find_reference_dir
from tests.test_reference_models import MARGIN, _has_noise, _noise, compare_detections

REFERENCE = find_reference_dir()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(literal=True)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((64, 90), (200, 130), (64, 90))]


NAMES = ["traffic light", "dog", "zebra crossing", "cup", "table"]


def _reference_runs():
    for name in reference_models.case_names(REFERENCE):
        for case in reference_models.load_runs(REFERENCE, name):
            if "losses" not in case.meta and "names" in case.run_meta or "char_spans" in case.run_meta:
                pixels = max(i["height"] * i["width"] for i in case.meta["images"])
                yield pytest.param(case, id=f"{name}-{case.run}",
                                   marks=[pytest.mark.slow] if pixels > 50_000 else [])


@pytest.mark.parametrize("case", list(_reference_runs()))
def test_converted_weights_give_the_reference_detections(case, tmp_path):
    """A checkpoint file in the reference's layout, converted without torch, through the public interface."""
    manifest = json.loads((REFERENCE / f"manifest_{case.meta['model']}.json").read_text())
    config = reference_models.infer_config(manifest, case.meta)
    state = reference_models.recipe(REFERENCE).make_all(manifest, case.meta["case_seed"])
    write_torch(tmp_path / "glip.pth", {"model": {f"module.{key.removeprefix('module.')}": value
                                                  for key, value in state.items()}})
    convert([tmp_path / "glip.pth"], "glip_t", tmp_path / "weights",
            overrides=json.loads(json.dumps(dataclasses.asdict(config))))
    detector = Detector.from_pretrained(tmp_path / "weights")
    # The fixtures' pictures have the size that is fed.
    detector.settings.short_side, detector.settings.max_size = 0, 10_000
    pictures, sizes, _, _ = reference_models.inputs(REFERENCE, case)
    images = [picture[:h, :w] for picture, (h, w) in zip(pictures, sizes)]
    if "names" in case.run_meta:
        found = detector.detect(images, case.run_meta["names"], threshold=0, exact_canvas=True)
    else:
        # What the caption of the first image says is asked of every image.
        captions = case.run_meta["captions"]
        spans = [phrase if isinstance(phrase[0], list) else [phrase] for phrase in case.run_meta["char_spans"]]
        found = [detector.ground(images[0], captions[0], spans, threshold=0, exact_canvas=pictures.shape[1:3])]
    for i, one in enumerate(found):
        noise = [_noise(case.meta, f"det.{i if _has_noise(case, f'det.{i}.{part}') else 0}.{part}")[1]
                 for part in ("scores", "boxes")]
        compare_detections((one.boxes, one.scores, one.labels + 1),
                           tuple(case.arrays[f"det.{i}.{part}"] for part in ("boxes", "scores", "labels")),
                           score_tolerance=MARGIN * noise[0], box_tolerance=MARGIN * noise[1])


def test_batches_prompts_and_canvases_do_not_change_a_result(detector, images):
    together = detector.detect(images, NAMES, threshold=0, batch_size=2)
    alone = [detector.detect([image], NAMES, threshold=0)[0] for image in images]
    for a, b in zip(together, alone):
        assert len(a) == len(b) > 5
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
    assert np.array_equal(together[1].image, images[1])
    own = detector.detect(images[:2], [["cup"], ["dog", "cup"]], threshold=0)
    assert set(own[0].phrases) == {"cup"} and own[1].names == ("dog", "cup")


def test_words_are_encoded_once_for_a_prompt(detector, images, monkeypatch):
    calls = []
    monkeypatch.setattr(detector._predictor, "encode_text",
                        lambda *args, real=detector._predictor.encode_text: calls.append(1) or real(*args))
    detector._text.clear()
    for _ in range(3):
        detector.detect(images, NAMES)
    assert len(calls) == 1


def test_another_prompt_or_photograph_compiles_nothing_and_repeats_nothing(detector, images, monkeypatch, compilations):
    """Whatever compiles in the process is counted, beside the parts of the model that run."""
    rng, parts = np.random.default_rng(2), ("encode_image", "encode_text", "predict", "decode")
    others = [rng.integers(0, 256, image.shape, np.uint8) for image in images]
    detector.detect(images, NAMES, threshold=0, classes_per_prompt=3)
    for part in parts:
        monkeypatch.setattr(detector._predictor, part, mock.Mock(wraps=getattr(detector._predictor, part)))

    def calls():
        return [getattr(detector._predictor, part).call_count for part in parts]
    with compilations() as found:
        detector.detect(others, NAMES, threshold=0, classes_per_prompt=3)           # its words are known
        assert calls() == [3, 0, 6, 6]
        detector.detect(images, ["bird", *NAMES[1:]], threshold=0, classes_per_prompt=3)        # of the two prompts, one is
        assert calls() == [6, 1, 12, 12]
        for expected in ([7, 1, 14, 14], [7, 1, 16, 16]):                           # the photograph that it has just seen
            detector.detect(others[:1], ["bird", *NAMES[1:]], threshold=0, classes_per_prompt=3)
            assert calls() == expected
    assert not found
    with compilations() as found:
        jax.jit(lambda x: x + 41)(np.ones(3))
    assert found                                           # it would have been seen


def test_a_loop_over_sizes_compiles_nothing_new(detector):
    rng = np.random.default_rng(0)
    detector.detect([np.zeros((50, 70, 3), np.uint8), np.zeros((70, 50, 3), np.uint8)], NAMES)
    before = detector._predictor._predict._cache_size()
    for _ in range(5):
        size = rng.integers(20, 300, 2)
        detector.detect([rng.integers(0, 256, (*size, 3), np.uint8)], NAMES[:rng.integers(1, 6)])
    assert detector._predictor._predict._cache_size() == before


def test_one_order_or_the_average_of_several(detector, images):
    one = detector.detect(images[:1], NAMES, threshold=0, max_detections=20)[0]
    shuffled = [NAMES[i] for i in (3, 0, 4, 1, 2)]
    other = detector.detect(images[:1], shuffled, threshold=0, max_detections=20)[0]
    assert not np.allclose(one.scores, other.scores, atol=1e-6)    # the text encoder reads positions
    averaged = detector.detect(images[:1], NAMES, threshold=0, orders=4)[0]
    assert 0 < len(averaged) <= 20 and not np.allclose(averaged.scores, one.scores, atol=1e-6)


def test_permuting_names_moves_no_label_to_another_name(tokenizer):
    """On the reference's tiny weights, whose scores are real functions of words: label k is always names[k]."""
    name = next(n for n in reference_models.case_names(REFERENCE) if "tiny" in n and "train" not in n)
    model, params = reference_models.model_and_params(str(REFERENCE), name)
    settings = common.get_config().eval
    settings.short_side, settings.canvases = 0, ((96, 96),)
    detector = Detector(model, params, tokenizer, settings, max_tokens=64)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    names = ["person", "bicycle", "traffic light", "hot dog"]
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        permuted = [names[i] for i in order]
        for prompt in detector._class_prompts(tuple(permuted), None, 1):
            (caption, encoding, tokens, classes), = prompt
            for row, label in zip(tokens, classes):
                begin, end = encoding.offsets[row][[0, -1]].reshape(-1)[[0, 3]]
                assert caption[begin:end] == permuted[label]
        found = detector.detect([image], permuted, threshold=0)[0]
        assert all(found.phrases[k] == permuted[found.labels[k]] for k in range(len(found)))


@pytest.mark.parametrize("names,found", [
    (["dog", "Dog", "dog"], {"dog"}),
    (["", "  ", "dog"], {"dog"}),
    (["Mr. Bean . the second", "[SEP]", "[MASK] dog"], {"Mr. Bean . the second", "[SEP]", "[MASK] dog"}),
    (["köttbullar", "犬", "🐶", "(sandal)"], {"köttbullar", "犬", "🐶", "(sandal)"}),
    (["flip-flop_(sandal)"], {"flip-flop_(sandal)"}),
    (["antidis" * 200], {"antidis" * 200}),
])
def test_odd_names_have_defined_results(detector, images, names, found):
    detections = detector.detect(images[:1], names, threshold=0, max_detections=1000)[0]
    assert set(detections.phrases) <= found
    assert detections.names == tuple(names)
    prompts = detector._class_prompts(tuple(names), None, 1)
    reached = {names[label] for prompt in prompts for row, label in zip(prompt[0][2], prompt[0][3]) if row.any()}
    assert reached == found


def test_special_tokens_in_a_name_are_letters(tokenizer):
    ids = tokenizer.encode("[SEP] [MASK]", 16).ids
    assert tokenizer.mask_id not in ids and list(ids).count(tokenizer.sep_id) == 1


def test_no_class_finds_nothing(detector, images):
    assert [len(found) for found in detector.detect(images, [])] == [0, 0, 0]
    assert detector.detect([], NAMES) == []


def test_thousands_of_classes_are_cut_into_prompts(detector, images):
    names = [f"thing {i}" for i in range(300)]
    prompts = detector._class_prompts(tuple(names), None, 1)
    assert [label for prompt in prompts for label in prompt[0][3]] == list(range(300))
    assert all(prompt[0][1].num_tokens <= 64 for prompt in prompts)
    assert all(row.any() for prompt in prompts for row in prompt[0][2][:len(prompt[0][3])])
    few = detector._class_prompts(tuple(names), 7, 1)
    assert max(len(prompt[0][3]) for prompt in few) == 7
    found = detector.detect(images[:1], names[:60], threshold=0, max_detections=1000)[0]
    assert len(set(found.labels)) > 5 and found.labels.max() < 60
    assert (np.diff(found.scores) <= 0).all()


def test_boxes_return_to_the_photograph(detector):
    """A box on the canvas, back in the photograph, then forward again by the pipeline's own resize."""
    from glipv2_jax.predict import _merged
    from input_pipeline import image_ops
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 900, 2)
        image = np.zeros((height, width, 3), np.uint8)
        canvas = detector._canvases([image])[0]
        batch, scales = detector._batch([image], canvas)
        corner = rng.uniform(0, (width, height))
        box = np.array([[*corner, *(corner + rng.uniform(0, 1, 2) * ((width, height) - corner))]], np.float32)
        box = box.clip(0, [width - 1, height - 1] * 2)
        _, on_canvas = image_ops.resize(image, box, tuple(batch["image_size"][0]))
        part = {"boxes": on_canvas, "scores": np.ones(1, np.float32), "labels": np.zeros(1, int),
                "mask": np.ones(1, bool)}
        back = _merged([part], scales[0], image, ("a",), 0, 1).boxes
        np.testing.assert_allclose(back, box, atol=0.5)


def test_an_image_in_every_form(detector, images, tmp_path):
    expected = detector.detect(images[:1], NAMES, threshold=0)[0]
    path = tmp_path / "a.png"
    Image.fromarray(images[0]).save(path)
    turned = Image.fromarray(np.rot90(images[0], 1).copy())          # as a camera on its side stores it
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    forms = [str(path), path, path.read_bytes(), Image.open(path), Image.open(tmp_path / "turned.png"),
             np.dstack([images[0], np.full(images[0].shape[:2], 255, np.uint8)])]
    for found in detector.detect(forms, NAMES, threshold=0):
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize("arguments,message", [
    ((np.zeros((4, 4, 3), np.uint8), NAMES), "found a single image"),
    (("photo.jpg", NAMES), "found a single image"),
    (([np.zeros((4, 4, 3), np.float32)], NAMES), r"images\[0\]: found an array of float32"),
    (([np.zeros((0, 4, 3), np.uint8)], NAMES), "no pixels"),
    (([np.zeros((4, 4, 3), np.uint8)], "cat. dog"), "expected a list of names"),
    (([np.zeros((4, 4, 3), np.uint8)], [["a"], ["b"]]), "found 2 lists for 1 images"),
    ((["nowhere.jpg"], NAMES), "nowhere.jpg: cannot read"),
])
def test_bad_arguments_are_named(detector, arguments, message):
    with pytest.raises(ValueError, match=message):
        detector.detect(*arguments)


def test_numbers_below_one_are_named(detector, images):
    for name in ("orders", "batch_size", "max_detections"):
        with pytest.raises(ValueError, match=f"{name} 0.*: expected at least 1"):
            detector.detect(images, NAMES, **{name: 0})


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 50, float("nan")])
def test_a_threshold_is_a_score(detector, images, threshold):
    for call in (lambda: detector.detect(images, NAMES, threshold=threshold), lambda: detector.ground(images[0], "a dog", threshold=threshold)):
        with pytest.raises(ValueError, match=f"threshold: found {threshold}, expected a score, 0 to 1"):
            call()


def test_ground_counts_every_occurrence_of_a_phrase(detector, images):
    caption = "A dog and a dog on the İstanbul table"
    found = detector.ground(images[0], caption, ["a dog", [(19, 37)]], threshold=0)
    assert found.spans == (((0, 5), (10, 15)), ((19, 37),))
    assert found.names == ("a dog", caption[19:37]) and set(found.labels) <= {0, 1}
    with pytest.raises(ValueError, match="'cat' does not occur"):
        detector.ground(images[0], caption, ["cat"])
    with pytest.raises(ValueError, match="37 letters"):
        detector.ground(images[0], caption, [[(30, 50)]])
    found = detector.ground(images[0], caption, threshold=0)
    assert len(found.names) == 3 and found.names[0] == "A dog"
    assert len(detector.ground(images[0], "")) == 0


def test_results_in_other_forms(detector, images):
    found = detector.detect(images[:1], NAMES, threshold=0)[0]
    rows = found.to_coco(7, category_ids=[10, 20, 30, 40, 50])
    assert [row["category_id"] for row in rows] == [10 * (label + 1) for label in found.labels]
    x, y, w, h = rows[0]["bbox"]
    np.testing.assert_allclose([x, y, x + w - 1, y + h - 1], found.boxes[0], atol=1e-4)
    assert found.draw().size == Image.fromarray(found.image).resize(found.draw().size).size
    record = found.to_odvg("a.jpg")
    assert (record["height"], record["width"]) == images[0].shape[:2]
    assert record["detection"]["instances"][0]["category"] == found.phrases[0]
    grounded = detector.ground(images[0], "a cup on a table", ["a cup"], threshold=0)
    assert grounded.to_odvg("a.jpg")["grounding"]["regions"][0]["tokens_positive"] == [[0, 5]]
    assert grounded.draw().height > found.draw().height            # the caption stands below
    best = found.without_overlaps(0.5)
    assert 0 < len(best) < len(found)
    overlaps = np.array(iou_matrix(best.boxes, best.boxes)) - np.eye(len(best))
    assert overlaps.max() <= 0.5 and best.scores[0] == found.scores[0]
    threshold = float(np.median(found.scores))
    assert len(found.above(threshold)) == (found.scores > threshold).sum()
    empty = dataclasses.replace(found.above(2.0))
    assert len(empty.without_overlaps()) == 0 and empty.to_coco(1) == [] and empty.draw()


def test_to_supervision_says_what_is_missing(detector, images):
    found = detector.detect(images[:1], NAMES, threshold=0)[0]
    try:
        import supervision
    except ImportError:
        with pytest.raises(ImportError, match="pip install supervision"):
            found.to_supervision()
    else:
        assert isinstance(found.to_supervision(), supervision.Detections)


def test_embeddings_for_retrieval(detector, images):
    texts = detector.embed_text(["a dog", "a cup"])
    regions, places = detector.embed_regions(images[0], [[0, 0, 40, 40], [30, 10, 60, 60]])
    assert texts.shape == regions.shape == (2, 8) and places.shape == (2, 4)
    np.testing.assert_allclose(np.linalg.norm(regions, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    assert len(detector.embed_regions(images[0])[0]) > 50
    with pytest.raises(ValueError, match="has no words"):
        detector.embed_text([" "])
