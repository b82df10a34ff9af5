"""Recall of phrases: hand-made cases of the any-box protocol."""
import json
import tarfile

import numpy as np
import pytest

from glipv2_jax.evaluation.benchmarks import find_sources
from glipv2_jax.evaluation.phrase_recall import flickr_recall, phrase_recall
from glipv2_jax.evaluation.protocols import FlickrRecall
from input_pipeline.flickr_entities import FlickrEntities

TRUE = [[10, 10, 30, 30]]
WRONG = [100, 100, 120, 120]


def phrase(rank, total=12, gt_boxes=TRUE):
    """A phrase with `total` boxes, of which only the one at `rank` is right."""
    return gt_boxes, [TRUE[0] if n == rank else WRONG for n in range(total)]


def test_a_hit_counts_from_its_rank_on():
    scores = phrase_recall([[phrase(0), phrase(4)], [phrase(5), phrase(9)], [phrase(11), phrase(99)]])
    assert scores == {
        "recall@1": pytest.approx(1 / 6), "recall@5": pytest.approx(2 / 6), "recall@10": pytest.approx(4 / 6),
        "upper_bound": pytest.approx(5 / 6), "num_phrases": 6}


def test_any_true_box_will_do():
    assert phrase_recall([[phrase(0, gt_boxes=[[200, 200, 210, 210], TRUE[0]])]])["recall@1"] == 1


@pytest.mark.parametrize("right, found", [(20, 1), (20.01, 0)])
def test_overlap_is_continuous_and_half_is_enough(right, found):
    # 10×10 inside right×10: exactly 0.5 at 20. Counting one pixel more, 11 of 21.01 would do as well.
    assert phrase_recall([[([[0, 0, 10, 10]], [[0, 0, right, 10]])]])["recall@1"] == found


def test_phrases_without_truth_are_not_counted_and_without_boxes_are_misses():
    scores = phrase_recall([[phrase(0, gt_boxes=np.zeros((0, 4))), (TRUE, []), phrase(0)]])
    assert (scores["num_phrases"], scores["recall@1"], scores["upper_bound"]) == (2, 0.5, 0.5)


def test_nothing_to_score_is_none_and_everything_is_json():
    scores = phrase_recall([])
    assert scores["recall@1"] is None and scores["num_phrases"] == 0
    json.dumps([scores, phrase_recall([[phrase(0)]])])


def test_misshapen_boxes_are_named():
    with pytest.raises(ValueError, match=r"caption 1, phrase 0: pred_boxes: found shape \(1, 5\)"):
        phrase_recall([[], [(TRUE, [[0, 0, 1, 1, 0.5]])]])


def test_merged_boxes_are_enclosed():
    one = [[0, 0, 10, 10], [30, 0, 40, 10]], [[0, 0, 40, 10]]
    assert phrase_recall([[one]])["recall@1"] == 0
    assert phrase_recall([[one]], protocol="merged")["recall@1"] == 1
    with pytest.raises(ValueError, match="'all', expected one of any, merged"):
        phrase_recall([[one]], protocol="all")


def test_equal_to_the_reference_on_flickr30k_entities(shared_data, load_reference, tmp_path):
    told, arrays = load_reference("evaluation/flickr.json"), load_reference("evaluation/flickr.npz")
    with tarfile.open(shared_data("flickr30k_entities/entities_val_1000.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "some.txt").write_text("\n".join(map(str, told["image_ids"])))
    truth = FlickrRecall().truth(FlickrEntities(tmp_path, split="some.txt"))
    rows, hits = [], []
    for sentence in told["sentences_detail"]:
        found = slice(sentence["detections_start"], sentence["detections_end"])
        scale = np.tile(np.array(sentence["size_wh"]) / sentence["resized_wh"], 2)
        boxes, labels = arrays["boxes"][found] * scale, arrays["labels"][found]
        order = np.argsort(-arrays["scores"][found], kind="stable")
        rows.append({"image_id": sentence["image_id"], "sentence_id": sentence["sentence_id"],
                     "boxes": [boxes[order[labels[order] == p["label"]]].tolist() for p in sentence["phrases"]]})
    names = {"recall@1": "Recall@1", "recall@5": "Recall@5", "recall@10": "Recall@10", "upper_bound": "Upper_bound"}
    for protocol, key in (("any", "separate"), ("merged", "merged")):
        scores = flickr_recall(truth, rows, protocol)
        ours = {f"{names[k]}_all": scores[k] for k in names} | {
            f"{names[k]}_{kind}": values[k] for kind, values in scores["per_type"].items() for k in names}
        assert ours == pytest.approx(told["reference"][key], abs=1e-12)
        place = 0
        for row in rows:
            for n, of_phrase in enumerate(row["boxes"]):
                one = phrase_recall([[(truth[row["image_id"], row["sentence_id"]][n][0], of_phrase)]], protocol=protocol)
                hits.append([one[name] for name in names])
                np.testing.assert_array_equal(hits[-1], arrays[f"hits_{key}"][place])
                place += 1

    # What the reference does with files that do not fit; it fails on an empty list of boxes, here that is a miss.
    plain, empty = flickr_recall(truth, rows)["recall@1"], rows[0] | {"boxes": [[] for _ in rows[0]["boxes"]]}
    told = told["behaviours_separate"]
    assert flickr_recall(truth, [*rows, empty])["recall@1"] == plain == told["plain"]["recall_at_1_all"]
    assert flickr_recall(truth, [empty, *rows[1:], rows[0]])["recall@1"] == pytest.approx(
        told["first_sentence_with_no_boxes_then_the_real_one_at_end"]["recall_at_1_all"])
    assert flickr_recall(truth, [*rows, rows[0] | {"sentence_id": 77}])["recall@1"] == plain
    texts = [row | {"image_id": str(row["image_id"]), "sentence_id": str(row["sentence_id"])} for row in rows]
    assert flickr_recall(truth, texts)["recall@1"] == plain
    dummies = [row | {"boxes": [[*of_phrase, [0, 0, 0, 0]] for of_phrase in row["boxes"]]} for row in rows]
    assert flickr_recall(truth, dummies)["recall@1"] == plain
    with pytest.raises(ValueError, match=f"nothing for 1 of {len(rows)} sentences"):
        flickr_recall(truth, rows[:-1])
    count = len(rows[0]["boxes"])
    with pytest.raises(ValueError, match=f"found boxes of {count + 1} phrases, expected {count}"):
        flickr_recall(truth, [rows[0] | {"boxes": [*rows[0]["boxes"], []]}, *rows[1:]])


def test_the_file_of_mdetr_has_the_phrases_of_the_release(shared_data, tmp_path):
    """Truth of both is the same, also where one box belongs to two phrases; types only the release has."""
    folder = shared_data("flickr30k_entities/sample")
    release = FlickrEntities(folder)
    images, annotations = [], []
    for index in range(len(release)):
        record = release[index]
        phrases, of_box = record["about"]["phrases"], {}
        height, width = release.image_size(index)
        images.append({"id": index, "file_name": release.file_name(index), "height": height, "width": width,
                       "caption": record["caption"], "original_img_id": record["about"]["original_img_id"],
                       "sentence_id": record["about"]["sentence_id"],
                       "tokens_positive_eval": [[list(phrase["span"])] for phrase in phrases]})
        for phrase in phrases:
            for corners in phrase["boxes"]:
                of_box.setdefault(tuple(corners), []).append(list(phrase["span"]))
        annotations += [{"image_id": index, "bbox": [x, y, right - x, bottom - y], "tokens_positive": spans, "iscrowd": 0}
                        for (x, y, right, bottom), spans in of_box.items()]
    assert any(len(annotation["tokens_positive"]) > 1 for annotation in annotations)
    (tmp_path / "final_flickr_separateGT_test.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    spec, = find_sources("flickr30k", tmp_path, images=False)
    ours, theirs = FlickrRecall().truth_of(spec), FlickrRecall().truth(release)
    assert ours.keys() == theirs.keys()
    for key, phrases in theirs.items():
        assert [sorted(map(list, boxes)) for boxes, _ in ours[key]] == [
            sorted(map(list, boxes)) for boxes, _ in phrases], key
