"""Questions and captions: what a text that is being written may know, decoding with caches, the losses, and `Detector`."""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from glipv2_jax.losses.answers import answer_loss
from glipv2_jax.losses.captions import next_words
from glipv2_jax.models import understanding
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import GLIPv2, init_params
from glipv2_jax.predict import Detector
from glipv2_jax.train_step import Objective, compute_losses
from input_pipeline.answers import AnswerList
from tests.test_models import MASK_HEAD, TINY, tiny_batch

ANSWERS = AnswerList(["yes", "no", "2", "red", "a red star"])
OVERRIDES = TINY | {"num_blocks": 2, "num_answers": len(ANSWERS)}
POSITIONS = np.tile(np.arange(12, dtype=np.int32), (4, 1))
CAUSAL = np.array([True, False, True, True])


def model_of(kind, **overrides):
    """(model, parameters far from their start, batch): a fusion layer that hands on what it must not shows in the second."""
    text = TINY["text_encoder"] | {"kind": kind}
    model = GLIPv2(model_config("glipv2_t" if kind == "bert" else "glipv2_b", OVERRIDES | {"text_encoder": text} | overrides))
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), params)
    return model, params, tiny_batch(mask_size=8)


@pytest.fixture(scope="module", params=["bert", "clip"])
def case(request):
    model, params, batch = model_of(request.param)
    forward = jax.jit(lambda ids, causal: model.apply(
        {"params": params}, batch["image"], batch["image_size"], ids, batch["token_mask"], POSITIONS, False, causal))
    return model, params, batch, forward


def test_a_written_word_depends_on_no_later_one(case):
    """Through the text encoder, both fusion layers and what lies between them."""
    _, _, batch, forward = case
    before = forward(batch["token_ids"], CAUSAL)
    for place in (1, 6, 11):
        ids = batch["token_ids"].copy()
        ids[:, place] = (ids[:, place] + 7) % 50 + 5
        after = forward(ids, CAUSAL)
        change = np.abs(np.asarray(after.mlm_logits - before.mlm_logits)).max(-1)
        assert change[CAUSAL, :place].max() < 1e-6, place
        assert change[CAUSAL, place:].min() > 1e-4
        # The text that is read as a whole is another matter: there the test would see a leak.
        assert change[~CAUSAL].min() > 1e-4
        boxes = np.abs(np.asarray(after.box_deltas - before.box_deltas)).max((1, 2))
        assert boxes[CAUSAL].max() < 1e-6 and boxes[~CAUSAL].min() > 1e-5


def test_decoding_with_caches_equals_the_whole_forward_pass(case):
    """Two texts for each image, side by side as beams are, in a cache no longer than they."""
    model, params, batch, forward = case
    texts = np.stack([batch["token_ids"], batch["token_ids"][::-1]], axis=1)                        # [B, K, T]
    expected = np.stack([forward(texts[:, k], np.ones(4, bool)).mlm_logits for k in range(2)], axis=1)
    apply = functools.partial(model.apply, {"params": params})
    regions = jax.jit(lambda *image: apply(apply(*image, method="encode_image"), method=understanding.read_image))(
        batch["image"], batch["image_size"])
    step = jax.jit(lambda cache, ids, position: apply(regions, cache, ids, position, method=understanding.write_word))
    cache = understanding.empty_cache(model.config, 8, 12, jnp.float32)
    for position in range(12):
        logits, cache = step(cache, texts[:, :, position], jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, :, position], atol=3e-5)


@pytest.fixture(scope="module")
def training():
    """(batch, function of it → ((loss, metrics), gradients))."""
    model, params, batch = model_of("bert", mask_head=MASK_HEAD)
    objective = Objective(mask_id=4, vocab_size=64, mlm_positions=4, caption_words=8, answers=True, contrastive_regions=12, mask_boxes=5)
    return understood(batch), jax.jit(lambda batch: jax.value_and_grad(
        lambda p: compute_losses(model, objective, p, batch, jax.random.key(1)), has_aux=True)(params))


def test_texts_beside_a_written_one_are_read_as_ever():
    model, params, batch = model_of("bert")

    def forward(causal):
        return model.apply({"params": params}, batch["image"], batch["image_size"], batch["token_ids"], batch["token_mask"],
                           POSITIONS, False, causal)
    mixed, none = jax.jit(lambda: (forward(CAUSAL), forward(None)))()
    for name in ("alignment_logits", "box_deltas", "mlm_logits", "answer_logits"):
        np.testing.assert_allclose(getattr(mixed, name)[~CAUSAL], getattr(none, name)[~CAUSAL], atol=2e-5)
        assert np.abs(np.asarray(getattr(mixed, name)[CAUSAL] - getattr(none, name)[CAUSAL])).max() > 1e-4


def understood(batch):
    """The batch with a caption to be written, a question, a text without boxes and a class list."""
    scores = np.zeros((4, len(ANSWERS)), np.float32)
    scores[2] = 0, 1, 0.33, 0, 0
    return batch | {"causal": np.array([False, True, False, False]), "is_grounded": np.array([True, False, True, False]),
                    "is_question": np.array([False, False, True, False]), "answer_scores": scores}


def test_a_written_caption_trains_nothing_but_its_words(training):
    batch, losses = training
    found = losses(batch)[0][1]
    assert found["count_caption"] == 8 and found["count_answer"] == 1
    moved = batch | {"boxes": batch["boxes"].copy(), "positive_map": batch["positive_map"].copy()}
    for row in (1, 3):                                                # written, and nobody has said where its words are
        moved["boxes"][row] *= 0.5
        moved["positive_map"][row] = ~moved["positive_map"][row]
    again = losses(moved)[0][1]
    assert all(found[name] == again[name] for name in found), (found, again)
    moved["boxes"][0] *= 0.5
    assert losses(moved)[0][1]["loss_box"] != found["loss_box"]


def test_losses_without_captions_and_questions_are_finite(training):
    batch, losses = training
    (loss, metrics), grads = losses(batch | {key: np.zeros(4, bool) for key in ("causal", "is_grounded", "is_question")})
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert metrics["loss_caption"] == metrics["loss_answer"] == metrics["loss_box"] == metrics["loss_alignment"] == 0
    assert metrics["loss_mlm"] > 0


def test_images_without_boxes_train_words_and_answers_alone(training):
    """A question about such an image is worth what it is worth beside boxes; with none in the whole batch no mask is learned."""
    batch, losses = training
    (_, before), _ = losses(batch)
    bare = batch | {key: batch[key].copy() for key in ("boxes", "box_mask", "positive_map", "masks")}
    for rows in ([2], [0, 1, 2, 3]):
        for key in ("boxes", "box_mask", "positive_map", "masks"):
            bare[key][rows] = 0
        (loss, metrics), grads = losses(bare)
        assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
        for name in ("answer", "caption", "mlm"):
            assert metrics[f"loss_{name}"] == before[f"loss_{name}"] > 0
        assert (metrics["loss_mask"] > 0) == (metrics["loss_box"] > 0) == (rows == [2])
        assert any(np.any(x) for x in jax.tree.leaves(grads["mask_head"])) == (rows == [2])
        assert any(np.any(x) for x in jax.tree.leaves(grads["answers"]))


def test_next_words_and_answers_by_hand():
    ids = np.array([[2, 7, 8, 3, 0, 0], [2, 9, 3, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)   # the second is not written
    positions, targets, valid = next_words(ids, mask, 40)
    assert positions.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert targets[0, :3].tolist() == [7, 8, 3] and valid.tolist() == [[True, True, True, False, False], [False] * 5]
    assert next_words(ids, mask, 2)[2].tolist() == [[True, True], [False, False]]
    logits = np.array([[0.0, np.log(3)], [5.0, 5.0]], np.float32)
    total, count = answer_loss(logits, np.array([[1, 0.5], [0, 0]], np.float32), np.array([True, False]))
    assert count == 1 and total == pytest.approx(np.log(2) - 0.5 * np.log(0.75) - 0.5 * np.log(0.25), rel=1e-5)


def test_heads_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="num_answers: found a model without fusion"):
        model_config("glip_a", {"num_answers": 3})


@pytest.fixture(scope="module")
def talker(detector):
    """The tests' detector with a head of five answers."""
    model = GLIPv2(model_config("glipv2_t", TINY | {"num_answers": len(ANSWERS), "text_encoder": TINY["text_encoder"] | {
        "vocab_size": detector.tokenizer.vocab_size, "max_positions": 64}}))
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), params)
    params["grounding"]["bias0"] = params["grounding"]["bias0"] * 0
    return Detector(model, params, detector.tokenizer, detector.settings, 64, ANSWERS)


PICTURE = np.random.default_rng(1).integers(0, 256, (50, 80, 3), dtype=np.uint8)


def test_answer_and_boxes_come_from_one_forward(talker):
    found = talker.answer(PICTURE, "Is the red star left of a small circle?", top=3, threshold=0.0)
    assert found.question.startswith("Is the") and len(found.answers) == 3 and set(found.answers) < set(ANSWERS.names)
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True) and 0 < found.probabilities.min()
    same = talker.ground(PICTURE, found.question, threshold=0.0)
    assert found.found.names == same.names == ("the red star", "a small circle")
    np.testing.assert_allclose(found.found.boxes, same.boxes, atol=1e-3)
    np.testing.assert_allclose(found.found.scores, same.scores, atol=1e-5)
    assert talker.answer(PICTURE, found.question, top=99).answers[:3] == found.answers
    assert found.draw().size[0] > 80 and len(found.without_overlaps().found) <= len(found.found)
    assert found.to_odvg("a.jpg")["answers"][0]["answer"] == found.answers[0]
    none = talker.answer(PICTURE, "is it?")
    assert len(none.found) == 0 and len(none.answers) == 5


@pytest.mark.parametrize("question, message", [
    ("", "no word that the model knows in ''"), (" ?!", "no word"), ("☃ ☄", "no word"), (3, "found int")])
def test_questions_without_words(talker, question, message):
    with pytest.raises(ValueError, match=message):
        talker.answer(PICTURE, question)


def test_a_caption_of_unknown_words_is_read_as_such(talker):
    found = talker.ground(PICTURE, "\u16a0\u16a2\u16a6 \u16a8\u16b1", threshold=0.0)
    same = talker.ground(PICTURE, "\u16a0\u16a2 \u16a8\u16b1", threshold=0.0)                     # other words, as unknown
    assert len(found) and found.names == ("\u16a0\u16a2\u16a6 \u16a8\u16b1",) and np.isfinite(found.scores).all()
    np.testing.assert_array_equal(found.boxes, same.boxes)
    none = talker.ground(PICTURE, "\u2603 \u2604", threshold=0.0)
    assert len(none) == 0 and none.names == ()


def test_a_blank_picture_and_an_empty_file(talker, tmp_path):
    Image.new("RGB", (80, 50), "white").save(tmp_path / "blank.png")
    found = talker.describe(tmp_path / "blank.png", beams=2, max_words=6)
    assert isinstance(found.caption, str) and found.image.min() == 255 and np.isfinite(found.scores).all()
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.png: cannot read the image"):
        talker.describe(tmp_path / "empty.png", beams=2, max_words=6)


def test_caption_and_its_boxes(talker):
    found = talker.describe(PICTURE, beams=2, max_words=6, threshold=0.0)
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert isinstance(found.caption, str) and not special & set(found.caption.upper().split())
    assert found.spans is not None and all(0 <= label < len(found.names) for label in found.labels)
    assert found.draw().size[0] > 80
    written = {}
    for beams in (1, 3):
        batch, _ = talker._batch([PICTURE], (64, 96))
        levels = talker._predictor.encode_image(batch)
        written[beams] = talker._predictor.write(levels, talker.tokenizer, max_words=6, beams=beams)
        assert written[beams].token_ids.shape == (1, 6)
    assert written[3].scores[0] >= written[1].scores[0] - 1e-4


def test_another_question_compiles_nothing(talker):
    talker.answer(PICTURE, "is there a star?")
    before = talker._predictor._answer._cache_size()
    talker.answer(PICTURE, "how many red circles are left of the green moon?")
    assert talker._predictor._answer._cache_size() == before == 1


def test_another_photograph_is_described_without_compiling_and_words_before_are_read_once(talker, monkeypatch, compilations):
    """An image is read once for all words and beams, and each word once: from caches, one position at a time."""
    for part in ("encode_image", "write"):
        monkeypatch.setattr(talker._predictor, part, mock.Mock(wraps=getattr(talker._predictor, part)))
    reads, write_word = [], understanding.write_word

    def traced(model, regions, cache, token_ids, position):
        reads.append(token_ids.shape)
        return write_word(model, regions, cache, token_ids, position)
    monkeypatch.setattr(understanding, "write_word", traced)
    talker.describe(PICTURE[:, ::-1], beams=2, max_words=5, threshold=1.0)
    assert talker._predictor.encode_image.call_count == talker._predictor.write.call_count == 1
    # Traced as the body of one loop, always of one new word for each beam, whatever the length of the text.
    assert reads and set(reads) == {(1, 2)} and len(reads) < 5
    traces, other = len(reads), np.random.default_rng(3).integers(0, 256, PICTURE.shape, np.uint8)
    with compilations() as found:
        levels = talker._predictor.encode_image(talker._batch([other], (64, 96))[0])
        talker._predictor.write(levels, talker.tokenizer, max_words=5, beams=2)
    assert len(reads) == traces and not found


def test_models_without_heads_and_wrong_numbers_say_so(detector, talker):
    with pytest.raises(ValueError, match="answers no questions: it has no head of answers"):
        detector.answer(PICTURE, "is it?")
    with pytest.raises(ValueError, match=r"no list of them; expected answers.txt"):
        Detector(talker.model, talker.params, talker.tokenizer, talker.settings, 64).answer(PICTURE, "is it?")
    with pytest.raises(ValueError, match="beams: found 0, expected 1 or more"):
        talker.describe(PICTURE, beams=0)
    with pytest.raises(ValueError, match="max_words: found .*, expected 1 or more, at most 63"):
        talker.describe(PICTURE, max_words=64)
    for call in (lambda: talker.answer(PICTURE, "is it?", threshold=2), lambda: talker.describe(PICTURE, threshold=2)):
        with pytest.raises(ValueError, match="threshold: found 2, expected a score, 0 to 1"):
            call()
    silent = GLIPv2(model_config("glip_t", TINY))
    with pytest.raises(ValueError, match="writes no captions"):
        Detector(silent, {}, talker.tokenizer, talker.settings, 16).describe(PICTURE)
