"""`glipv2 evaluate --benchmark`: data found or missing by name, ODinW's sets, every protocol from a checkpoint to a table."""
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from glipv2_jax import train
from glipv2_jax.evaluation import benchmarks, command, odinw
from glipv2_jax.evaluation.parts import Found, Parts
from input_pipeline import prompts, stand_ins
from input_pipeline.masks import encode_mask
from input_pipeline.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.test_train import small_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The workdir of a run of two steps."""
    workdir = tmp_path_factory.mktemp("run")
    config = small_config()
    config.train.num_steps = 2
    train.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """COCO, RefCOCO and PhraseCut of rendered scenes, five images each."""
    folder = tmp_path_factory.mktemp("data")
    for name, kind in (("coco/annotations/instances_val2017.json", "coco_json"),
                       ("mdetr/finetune_refcoco_val.json", "grounding_json")):
        place = folder / name.split("/")[0] / "val2017"
        stand_ins.write({"kind": kind, "json_path": str(folder / name), "image_folder": str(place)}, "", num_images=5)
    shutil.copy(folder / "mdetr" / "finetune_refcoco_val.json", folder / "mdetr" / "finetune_phrasecut_test.json")
    return folder


def run(*arguments):
    command.main([str(argument) for argument in arguments])


def test_coco_from_checkpoint_to_table_and_its_own_file_again(checkpoint, data, tmp_path, capsys):
    run("--benchmark=coco", f"--data={data}/coco", f"--checkpoint={checkpoint}", f"--output={tmp_path}")
    shown = capsys.readouterr().out
    assert "glipv2_t, published" in shown and "AP50" in shown
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert {row["image_id"] for row in rows} <= {1, 2, 3, 4, 5, 0}
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert "fingerprint" in protocol["checkpoint"] and protocol["scores"]["AP"] is not None
    assert (tmp_path / "pictures.jpg").exists() and not (tmp_path / ".parts").exists()
    run("--benchmark=coco", f"--data={data}/coco", f"--results={tmp_path / 'detections.json'}")
    again = capsys.readouterr().out
    assert f"{100 * protocol['scores']['AP50']:.2f}" in again


def test_phrases_that_mean_an_object_or_a_region(checkpoint, data, tmp_path, capsys):
    for benchmark, score in (("refcoco", "accuracy"), ("phrasecut", "mean_IoU")):
        output = tmp_path / benchmark
        run(f"--benchmark={benchmark}", f"--data={data}/mdetr", f"--checkpoint={checkpoint}", f"--output={output}")
        assert score in capsys.readouterr().out
        first = json.loads((output / "protocol.json").read_text())["scores"]
        run(f"--benchmark={benchmark}", f"--data={data}/mdetr", f"--results={output / 'predictions.json'}")
        assert f"{100 * first[score]:.2f}" in capsys.readouterr().out


def test_views_and_wordings(checkpoint, data, tmp_path):
    def scores(name, *settings):
        run("--benchmark=coco", f"--data={data}/coco", f"--checkpoint={checkpoint}", f"--output={tmp_path / name}", *settings)
        return json.loads((tmp_path / name / "protocol.json").read_text())
    plain = scores("plain", "--score_threshold=0.0")
    # One view, the plain one, whose boxes are suppressed as the model does it but for the +1 of widths.
    same = scores("same", "--score_threshold=0.0", "--views=[[64,64]]", "--records_per_part=2")
    assert same["scores"]["AR100"] == pytest.approx(plain["scores"]["AR100"], abs=0.1)
    both = scores("both", "--views=[[64,64],[96,96,true]]", "--merge=vote", "--classes_per_prompt=3")
    assert len(both["prompt"]) > 1 and both["settings"]["views"] == [[64, 64], [96, 96, True]]
    worded = scores("worded", '--wordings=["{name}","a photo of a {name}"]', "--classes_per_prompt=2")
    assert worded["prompt"][0][1].startswith("a photo of a ")
    twice = scores("twice", '--wordings=["{name}","{name}"]', "--score_threshold=0.0")
    assert twice["scores"]["AR100"] == pytest.approx(plain["scores"]["AR100"], abs=1e-3)


def test_an_evaluation_goes_on_after_its_last_part(checkpoint, data, tmp_path, monkeypatch):
    arguments = ("--benchmark=coco", f"--data={data}/coco", f"--checkpoint={checkpoint}", "--records_per_part=2",
                 "--batch_size=2", "--score_threshold=0.0")
    run(*arguments, f"--output={tmp_path / 'whole'}")
    add, added = Parts.add, []

    def stop_at_the_second(self, found):
        if len(added) == 1:
            raise KeyboardInterrupt
        added.append([one.record for one in found])
        add(self, found)
    monkeypatch.setattr(Parts, "add", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments, f"--output={tmp_path / 'stopped'}")
    rest = []
    monkeypatch.setattr(Parts, "add", lambda self, found: (rest.append([one.record for one in found]), add(self, found)))
    run(*arguments, f"--output={tmp_path / 'stopped'}")
    assert sorted(itertools.chain.from_iterable(added + rest)) == list(range(5))                # every record once
    assert (tmp_path / "stopped" / "detections.json").read_bytes() == (tmp_path / "whole" / "detections.json").read_bytes()


def test_parts_of_another_evaluation_are_not_taken(tmp_path):
    found = Found(3, 12, (0.5, 0.25), np.ones((2, 4), np.float32), np.array([0.5, 0.4], np.float32), np.array([1, 0]))
    parts = Parts(tmp_path / "parts", {"weights": "a"})
    parts.add([found, Found(4, 13, (1.0, 1.0), *(np.zeros(s, np.float32) for s in ((0, 4), 0, 0)))])
    again = Parts(tmp_path / "parts", {"weights": "a"})
    assert again.finished == 1
    one, empty = again
    assert (one.record, one.image_id, one.scale, len(empty.scores)) == (3, 12, (0.5, 0.25), 0)
    assert one.original_boxes()[0].tolist() == [4, 2, 4, 2] and one.labels.tolist() == [1, 0]
    assert Parts(tmp_path / "parts", {"weights": "b"}).finished == 0


def test_parts_keep_masks_as_run_lengths(tmp_path):
    rng, parts = np.random.default_rng(0), Parts(tmp_path / "parts", {})
    masks = [[encode_mask(rng.random(size) > 0.5) for _ in range(count)] for size, count in (((5, 9), 2), ((7, 3), 0), ((4, 4), 3))]
    for chosen in ((0, 1), (2,), ()):
        parts.add([Found(i, i, (1.0, 1.0), *(np.zeros(s, np.float32) for s in ((len(masks[i]), 4), len(masks[i]), len(masks[i]))),
                         masks[i]) for i in chosen])
    assert [found.masks for found in Parts(tmp_path / "parts", {})] == masks


@pytest.mark.parametrize("arguments, message", [
    (["--benchmark=coco", "--data=nowhere"], "nowhere: no such folder, expected the data of coco"),
    (["--benchmark=coco", "--data={tmp}"], r"found no file instances_val2017\.json or"),
    (["--benchmark=lvis_minival", "--data={tmp}", "--split=val"], "split of lvis_minival: found 'val', expected one of minival"),
    (["--benchmark=odinw13", "--data={tmp}"], "13 of 13 sets of ODinW have no annotations: AerialMaritimeDrone_large"),
    (["--benchmark=coco", "--data={tmp}", "--sets=a"], "--sets belongs to odinw13 and odinw35, not to coco"),
    (["--benchmark=vqav2", "--data={tmp}"], "found no file v2_OpenEnded_mscoco_val2014_questions.json"),
    (["--benchmark=flickr30k", "--data={tmp}"], "found no file final_flickr_separateGT_test.json"),
    (["--benchmark=refcoco", "--data={tmp}"], r"found no file finetune_refcoco_val\.json or finetune_refcoco\+_val")])
def test_missing_data_is_named_before_any_model_work(arguments, message, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        run(*arguments, "--checkpoint=none", "--output=none")
    assert not pathlib.Path("none").exists()


def test_the_same_detections_on_any_number_of_devices(checkpoint, data, tmp_path):
    """Bytes are equal where a device has as many images and threads; fake devices share the threads of one machine."""
    found = {}
    for devices in (1, 2, 8):
        output = tmp_path / str(devices)
        done = subprocess.run(
            [sys.executable, "-m", "glipv2_jax.cli", "evaluate", "--benchmark=coco", f"--data={data}/coco",
             f"--checkpoint={checkpoint}", f"--output={output}", "--score_threshold=0.0", f"--batch_size={max(devices, 2)}"],
            env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"},
            cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found[devices] = json.loads((output / "detections.json").read_text())
    for devices in (2, 8):
        assert len(found[devices]) == len(found[1])
        for one, other in zip(found[1], found[devices]):
            assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
            np.testing.assert_allclose([*one["bbox"], one["score"]], [*other["bbox"], other["score"]], atol=2e-3)


def test_a_benchmark_through_a_config(checkpoint, data, capsys):
    config = small_config()
    config.data.root, config.data.benchmark, config.data.benchmark_folder = str(data), "coco", "coco"
    scores = train.evaluate_only(config, checkpoint)
    assert "coco/AP" in scores and (checkpoint / "coco" / "detections.json").exists()
    config.data.benchmark_folder = "nowhere"
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        train.evaluate_only(config, checkpoint)


def test_missing_images_and_unknown_settings_are_named(checkpoint, data, tmp_path):
    partial = tmp_path / "mdetr"
    shutil.copytree(data / "mdetr", partial)
    max((partial / "val2017").iterdir()).unlink()
    with pytest.raises(SystemExit, match="problems: 1.*\n.*no file"):
        run("--benchmark=refcoco", f"--data={partial}", "--checkpoint=none", "--output=none")
    shutil.rmtree(partial)
    (tmp_path / "annotations").mkdir()
    shutil.copy(data / "coco" / "annotations" / "instances_val2017.json", tmp_path / "annotations")
    with pytest.raises(SystemExit, match="found no image .*, the first of its data set"):
        run("--benchmark=coco", f"--data={tmp_path}", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}")
    with pytest.raises(SystemExit, match="--max_detection: no field of config.eval"):
        run("--benchmark=coco", f"--data={data}/coco", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}",
            "--max_detection=3")


def _written(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}]}))


def test_images_of_the_split_are_taken_where_splits_share_names(tmp_path):
    _written(tmp_path, "annotations/train.json", "annotations/val.json", "images/train/1.jpg", "images/val/1.jpg")
    for split in ("train", "val"):
        assert benchmarks.find_sources("coco", tmp_path, split)[0]["image_folder"] == str(tmp_path / "images" / split)
    _written(tmp_path, "more/val/1.jpg")
    with pytest.raises(ValueError, match="found 2 of image 1.jpg, expected one: images/val, more/val"):
        benchmarks.find_sources("coco", tmp_path, "val")


def test_only_the_files_of_the_split_are_taken_and_only_where_there_is_no_doubt(tmp_path):
    _written(tmp_path, "refcoco/finetune_refcoco_testA.json", "final_flickr_mergedGT_test.json", "instances_val2014.json",
             "instances_minival2014.json")
    with pytest.raises(ValueError, match=r"found no file finetune_refcoco_test\.json or"):
        benchmarks.find_sources("refcoco", tmp_path, "test", images=False)
    with pytest.raises(ValueError, match="found no file final_flickr_separateGT_test.json"):
        benchmarks.find_sources("flickr30k", tmp_path, images=False)
    assert benchmarks.find_sources("coco", tmp_path, images=False)[0]["json_path"].endswith("/instances_val2014.json")
    _written(tmp_path, "instances_val2014_100.json")
    with pytest.raises(ValueError, match="found 2 of file instances_val.*expected one: instances_val2014.json, instances_val2014_"):
        benchmarks.find_sources("coco", tmp_path, images=False)


def test_flickr_without_a_list_of_its_split_says_that_all_is_scored(shared_data, tmp_path, caplog):
    folder = tmp_path / "release"
    shutil.copytree(shared_data("flickr30k_entities/sample"), folder)
    spec, = benchmarks.find_sources("flickr30k", tmp_path)
    assert (spec["name"], spec["image_folder"]) == ("flickr30k_all", str(folder / "Images"))
    assert "found no test.txt, so all photographs are scored" in caplog.text
    (tmp_path / "test.txt").write_text("36979\n")
    spec, = benchmarks.find_sources("flickr30k", tmp_path)
    assert (spec["name"], spec["split"]) == ("flickr30k_test", str(tmp_path / "test.txt"))
    shutil.rmtree(folder / "Images")
    with pytest.raises(ValueError, match="found no image 36979.jpg"):
        benchmarks.find_sources("flickr30k", tmp_path)
    assert benchmarks.find_sources("flickr30k", tmp_path, images=False)[0]["image_folder"] is None


def test_odinw_names_prompts_and_folders():
    assert len(odinw.SETS) == 35 and sum(one.in_13 for one in odinw.SETS) == 13
    of = {one.name: one for one in odinw.SETS}
    tokenizer = Tokenizer()

    def caption(name, naming):
        words = [prompts.Phrase(**({"name": ""} | word)) if isinstance(word, dict) else word
                 for word in odinw.words(of[name], naming)]
        return prompts.evaluation_prompts(words, tokenizer)[0]
    aquarium = "Aquarium_Aquarium_Combined.v2-raw-1024.coco"
    assert caption(aquarium, "35").caption == (
        " fish. jellyfish. penguin , which is black and white. puffin with orange beaks . shark. starfish. stingray which is "
        "flat and round")
    assert caption(aquarium, "13").caption == "fish. jellyfish. penguin. puffin. shark. starfish. stingray"
    assert caption("pothole", "35").caption == "there are some holes on the road"
    assert caption("CottontailRabbits", "13").caption == "Cottontail-Rabbit"
    assert caption("OxfordPets_by-breed", "35").encoding.num_tokens == 206
    assert of["boggleBoards_416x416AutoOrient_export_"].folder == "boggleBoards/416x416AutoOrient/export/"


def _odinw_set(folder, categories):
    folder.mkdir(parents=True)
    (folder / "annotations_without_background.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}], "annotations": [],
        "categories": [{"id": n, "name": name} for n, name in enumerate(categories, start=1)]}))


def test_odinw_takes_the_benchmarks_words_and_any_other_set(tmp_path):
    _odinw_set(tmp_path / "odinw" / "pothole" / "valid", ["Pothole"])
    _odinw_set(tmp_path / "odinw" / "mine" / "valid", ["thing"])
    specs = benchmarks.find_sources("odinw35", tmp_path, sets="pothole,mine")
    assert [(spec["name"], spec["class_names"]) for spec in specs] == [
        ("pothole", {"Pothole": odinw.PROMPTS["pothole"][0]}), ("mine", {})]
    assert benchmarks.find_sources("odinw35", tmp_path, sets="pothole", naming="13")[0]["class_names"] == {"Pothole": "pothole"}
    shutil.rmtree(tmp_path / "odinw" / "pothole")
    _odinw_set(tmp_path / "odinw" / "pothole" / "valid", ["background", "Pothole"])
    with pytest.raises(ValueError, match="found 2 categories.*background, has to be deleted"):
        benchmarks.find_sources("odinw35", tmp_path, sets="pothole")


def test_results_of_several_sets_are_scored_together(data, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.copytree(data / "coco" / "val2017", tmp_path / name / "images" / "test")
        (tmp_path / name / "annotations").mkdir()
        shutil.copy(data / "coco" / "annotations" / "instances_val2017.json", tmp_path / name / "annotations" / "test.json")
    truth = json.loads((tmp_path / "one" / "annotations" / "test.json").read_text())
    perfect = [{"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
               for a in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps({"one": perfect, "two": []}))
    arguments = ["--benchmark=odinw35", f"--data={tmp_path}", "--sets=one,two", "--split=test",
                 f"--results={tmp_path / 'results.json'}"]
    run(*arguments)
    shown = capsys.readouterr().out
    assert "100.00" in shown and "average" in shown and "50.00" in shown
    # Of a few-shot entry the seeds are averaged; a part of the sets may be scored.
    (tmp_path / "results.json").write_text(json.dumps({"one": {"3": perfect, "30": [], "300": []}}))
    with pytest.raises(SystemExit, match="found no results of two"):
        run(*arguments)
    run("--benchmark=odinw35", f"--data={tmp_path}", "--sets=one", *arguments[3:])
    assert "33.33" in capsys.readouterr().out


def test_masks_of_a_result_file_are_scored_too(shared_data, capsys):
    folder = shared_data("eval_parity/coco_det")
    run("--benchmark=coco", f"--data={folder}", f"--results={folder / 'instances_val2014_fakesegm100_results.json'}")
    shown = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│ coco " in line]
    found = {metric.strip(): value.strip() for _, _, metric, value, _ in shown}
    expected = json.loads((folder / "expected.json").read_text())["segm"]
    assert found["mask_AP"] == f"{100 * expected.get('stats', expected)['AP']:.2f}" and "AP" not in found     # no boxes in it


@pytest.mark.parametrize("content, more, message", [
    ("[{", [], "results.json: not a JSON file"), ('{"a": 1}', [], "found no results of coco"),
    ('[{"image_id": 1}]', [], "results.json, coco: results, row 0: found no category_id"),
    ("[]", ["--coco_scorer=fast"], "scorer: found 'fast', expected pycocotools or faster")])
def test_bad_result_files_are_named(data, tmp_path, content, more, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        run("--benchmark=coco", f"--data={data}/coco", f"--results={tmp_path / 'results.json'}", *more)


def test_a_result_file_is_scored_as_it_is(data, capsys):
    with pytest.raises(SystemExit):
        run("--benchmark=coco", f"--data={data}/coco", "--results=a.json", "--output=b")
    assert "found --results beside" in capsys.readouterr().err


def test_repaired_boxes_are_still_the_truth_of_the_file(checkpoint, tmp_path, capsys):
    """The scores of a run are those of its result file, which others compare with the file of the data set."""
    place = tmp_path / "mine"
    stand_ins.write({"kind": "coco_json", "json_path": str(place / "annotations" / "test.json"),
                     "image_folder": str(place / "images" / "test")}, "", num_images=3)
    path = place / "annotations" / "test.json"
    truth = json.loads(path.read_text())
    truth["annotations"].append(truth["annotations"][0] | {"id": 10**6, "bbox": [-50, -50, 20, 20]})
    path.write_text(json.dumps(truth))
    arguments = ["--benchmark=odinw35", f"--data={tmp_path}", "--sets=mine", "--split=test"]
    run(*arguments, f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}", "--score_threshold=0.0")
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert protocol["settings"]["ema"] is False
    assert benchmarks.find_sources("odinw35", tmp_path, "test", sets="mine")[0]["bad_boxes"] == "repair"
    again = command.score_results("odinw35", benchmarks.find_sources("odinw35", tmp_path, "test", sets="mine", images=False),
                                  tmp_path / "out" / "detections.json")
    assert {f"mine/{key}": value for key, value in protocol["scores"].items() if value is not None} == pytest.approx(again)


@pytest.mark.parametrize("setting, message", [
    ("--merge=nms", "merge: found rule 'nms'"), ("--coco_scorer=fast", "scorer: found 'fast'"),
    ("--views=[[1,2,3,4,5,6]]", r"eval.views: found \(1, 2, 3, 4, 5, 6\)"), ("--views=[7]", "eval.views: found 7")])
def test_settings_are_checked_before_the_model_works(checkpoint, data, tmp_path, setting, message):
    with pytest.raises(SystemExit, match=message):
        run("--benchmark=coco", f"--data={data}/coco", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}", setting)
    assert not (tmp_path / "out").exists()
