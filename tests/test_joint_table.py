"""The table of one model for every task: what needs no model, and what is read from two runs."""
import json

import pytest

from benchmarks import joint
from glipv2_jax.evaluation.coco_ap import ground_truth_from_source
from input_pipeline.registry import make_source

SCENES = {"kind": "scenes", "split": "test", "num_examples": 3, "canvas": (128, 128), "max_objects": 4}


def test_true_boxes_filled_are_worse_than_true_masks_and_better_than_nothing():
    source = make_source(SCENES | {"task": "detection"})
    truth = ground_truth_from_source(source)
    rows = [{key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0} for row in truth["annotations"]]
    assert joint.coco_ap(truth, rows, iou_type="segm")["AP"] == pytest.approx(1)
    assert 0.05 < joint.filled_boxes(source, rows) < 0.95
    assert joint.whole_pictures(source) == 0


def test_whole_pictures_find_no_small_phrase():
    assert joint.whole_pictures_for_phrases(make_source(SCENES | {"task": "caption"})) == 0


def test_the_table_reads_the_last_evaluation_of_each_run(tmp_path, monkeypatch, capsys):
    scores = {key: 0.5 for _, key, _ in joint.ROWS}
    for name, lines in (("trained", [{"step": 1, "loss": 3.0}, scores | {"step": 2}]), ("untrained", [{"step": 1, "detections/AP50": 0.125}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(joint, "baselines", lambda trained, workdir: dict.fromkeys(scores, 0.25))
    monkeypatch.setattr("sys.argv", ["joint", f"--trained={tmp_path / 'trained'}", f"--untrained={tmp_path / 'untrained'}"])
    joint.main()
    said = capsys.readouterr().out
    assert said.count("50.0") == 4 and "12.5" in said and said.count("25.0") == 4 and "0.500" in said
    (tmp_path / "trained" / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    with pytest.raises(ValueError, match="found no evaluation"):
        joint.scores_of(tmp_path / "trained")
