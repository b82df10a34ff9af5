"""A run that answers and writes, from training to result files in the official formats, and what is done with its checkpoint."""
import json

import numpy as np
import pytest
from PIL import Image

from glipv2_jax import train
from glipv2_jax.build import find_answers
from glipv2_jax.convert.slim import slim
from glipv2_jax.evaluation import command
from glipv2_jax.evaluation.benchmarks import find_sources
from glipv2_jax.evaluation.parts import Said, Texts
from glipv2_jax.evaluation.pictures import write_texts
from glipv2_jax.evaluation.protocols import PROTOCOLS
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import GLIPv2
from glipv2_jax.predict import Detector
from input_pipeline.registry import make_source
from tests.test_train import SIZE, small_config

SCENES = {"kind": "scenes", "canvas": SIZE, "max_objects": 3}


def talking_config():
    config = small_config()
    config.model.overrides.num_answers = 25
    config.data.train = tuple({**SCENES, "task": task, "num_examples": 20, "weight": 1.0}
                              for task in ("question", "description", "detection"))
    config.data.eval = ({**SCENES, "task": "question", "split": "test", "num_examples": 5, "name": "questions"},
                        {**SCENES, "task": "description", "split": "test", "num_examples": 3, "name": "descriptions"})
    config.loss.caption_words, config.eval.caption_words, config.eval.beams = 10, 5, 2
    config.train.num_steps = 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, scores) of a run of two steps."""
    workdir = tmp_path_factory.mktemp("talking")
    return workdir, train.train_and_evaluate(talking_config(), workdir)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """VQA v2 and COCO captions of three rendered pictures; the last question has answers that people do not agree on."""
    folder = tmp_path_factory.mktemp("data")
    source = make_source({**SCENES, "task": "description", "num_examples": 3})
    questions, annotations, captions = [], [], []
    for n in range(3):
        record = source[n]
        Image.fromarray(record["image"]).save(folder / f"COCO_val2014_{n:012d}.jpg")
        said = ["yes"] * 6 + ["no"] * 4 if n == 2 else ["yes"] * 10
        questions.append({"image_id": n, "question": f"is number {n} there?", "question_id": 70 + n})
        annotations.append({"question_id": 70 + n, "image_id": n, "multiple_choice_answer": "yes", "question_type": "is",
                            "answer_type": "yes/no", "answers": [{"answer": one} for one in said]})
        captions += [{"id": 10 * n + k, "image_id": n, "caption": text} for k, text in enumerate(record["about"]["references"])]
    for name, content in (("v2_OpenEnded_mscoco_val2014_questions", {"data_subtype": "val2014", "questions": questions}),
                          ("v2_mscoco_val2014_annotations", {"annotations": annotations}),
                          ("captions_val2014", {"annotations": captions, "images": [
                              {"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in range(3)]})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_run_is_scored_on_questions_and_captions_beside_a_baseline(finished):
    workdir, scores = finished
    assert {"questions/accuracy", "questions/baseline_accuracy", "descriptions/CIDEr", "descriptions/baseline_CIDEr"} <= set(scores)
    assert scores["questions/baseline_accuracy"] > 0.3                        # of three or four kinds of questions, two of one
    rows = json.loads((workdir / "answers.json").read_text())
    assert [row["question_id"] for row in rows] == list(range(5))
    assert {row["answer"] for row in rows} <= set((workdir / "answers.txt").read_text().split())
    captions = json.loads((workdir / "descriptions" / "captions.json").read_text())
    assert [row["image_id"] for row in captions] == [0, 1, 2] and all(isinstance(row["caption"], str) for row in captions)
    protocol = json.loads((workdir / "descriptions" / "protocol.json").read_text())
    assert "CIDEr-D" in protocol["metric"] and protocol["settings"]["beams"] == 2
    assert (workdir / "pictures.jpg").exists() and (workdir / "descriptions" / "pictures.jpg").exists()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_caption", "loss_answer", "loss_alignment", "loss_mlm"} <= set(lines[0])


def test_its_checkpoint_answers_the_benchmarks_and_its_files_score_alike(finished, data, tmp_path, capsys):
    workdir, _ = finished
    for benchmark, file, score in (("vqav2", "answers.json", "accuracy"), ("coco_caption", "captions.json", "CIDEr")):
        output = tmp_path / benchmark
        command.main([f"--benchmark={benchmark}", f"--data={data}", f"--checkpoint={workdir}", f"--output={output}"])
        assert score in capsys.readouterr().out and (output / "pictures.jpg").exists()
        rows = json.loads((output / file).read_text())
        assert len(rows) == 3                                                  # of 15 captions one for each image
        first = json.loads((output / "protocol.json").read_text())["scores"]
        command.main([f"--benchmark={benchmark}", f"--data={data}", f"--results={output / file}"])
        assert f"{100 * first[score]:.2f}" in capsys.readouterr().out
    assert [row["question_id"] for row in json.loads((tmp_path / "vqav2" / "answers.json").read_text())] == [70, 71, 72]


def test_the_list_of_answers_travels(finished, tmp_path):
    workdir, _ = finished
    slim(workdir, tmp_path / "slim")
    picture = np.zeros((64, 64, 3), np.uint8)
    for folder in (workdir, tmp_path / "slim"):
        detector = Detector.from_pretrained(folder)
        assert len(detector.answers) == 25 and len(detector.answer(picture, "is there a star?", top=2).answers) == 2
        assert detector.describe(picture, beams=1, max_words=4).caption is not None
    (tmp_path / "slim" / "answers.txt").write_text("yes\nno\n")
    with pytest.raises(ValueError, match="found 2 answers, expected the 25 of the model"):
        Detector.from_pretrained(tmp_path / "slim")


def test_the_list_of_answers_comes_with_its_head(tmp_path):
    """The workdir's own, else that of the parameters, else the config's, else the training data's."""
    config = talking_config()
    config.model.overrides.num_answers = 2
    model = GLIPv2(model_config(config.model.variant, config.model.overrides))
    sources = [make_source({**SCENES, "task": "question", "num_examples": 3})]
    assert find_answers(config, model, sources, tmp_path / "run").names == ("0", "1")
    for folder, text in (("data", "red\nblue\n"), ("before", "yes\nno\n"), ("run", "2\n3\n"), ("long", "1\n2\n3\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "answers.txt").write_text(text)
    config.data.answers = str(tmp_path / "data" / "answers.txt")
    assert find_answers(config, model, sources, tmp_path).names == ("red", "blue")
    config.init_from = str(tmp_path / "before")
    assert find_answers(config, model, sources, tmp_path).names == ("yes", "no")
    assert find_answers(config, model, sources, tmp_path / "run").names == ("2", "3")
    with pytest.raises(ValueError, match="found 3 answers, expected the 2 of model.num_answers"):
        find_answers(config, model, sources, tmp_path / "long")
    config.data.answers = config.init_from = ""
    with pytest.raises(ValueError, match="found no answers.txt, expected the 2 answers of the model"):
        find_answers(config, model, (), tmp_path)


def test_texts_and_heads_have_to_fit_before_anything_is_compiled(tmp_path):
    config = talking_config()
    config.model.overrides.num_answers = 0
    with pytest.raises(ValueError, match="asks questions, but the model has no head of answers"):
        train.train_and_evaluate(config, tmp_path / "a")
    config = talking_config()
    config.loss.caption_words = 0
    with pytest.raises(ValueError, match="has captions to be written, but loss.caption_words is 0"):
        train.train_and_evaluate(config, tmp_path / "b")
    config = talking_config()
    config.model.overrides.mlm_head = False
    with pytest.raises(ValueError, match="loss.caption_words: found 10 with a model without mlm_head"):
        train.train_and_evaluate(config, tmp_path / "c")


@pytest.mark.slow
def test_a_list_of_one_answer_is_trained_scored_and_given(tmp_path):
    config = talking_config()
    config.model.overrides = config.model.overrides.to_dict() | {"num_answers": 1, "mlm_head": False, "contrastive_dim": 0}
    config.data.train, config.data.eval = config.data.train[:1], config.data.eval[:1]
    config.loss.caption_words, config.train.num_steps, config.train.ema_decay = 0, 1, 0.0
    scores = train.train_and_evaluate(config, tmp_path)
    (name,) = (tmp_path / "answers.txt").read_text().split()
    rows = json.loads((tmp_path / "answers.json").read_text())
    assert len(rows) == 5 and {row["answer"] for row in rows} == {name} and 0 <= scores["questions/accuracy"] <= 1
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["count_answer"] == 2 and np.isfinite(line["loss_answer"]) and line["applied"]
    said = Detector.from_pretrained(tmp_path).answer(np.zeros((64, 64, 3), np.uint8), "is there a star?")
    assert said.answers == (name,) and 0 < said.probabilities[0] < 1


def test_true_words_score_fully_and_above_the_baseline(data, tmp_path, capsys):
    for benchmark, name, score in (("vqav2", "answers", "accuracy"), ("coco_caption", "captions", "CIDEr")):
        (spec,) = find_sources(benchmark, data)
        source, protocol = make_source(spec), PROTOCOLS[name]
        chosen = range(3) if name == "answers" else np.unique(source.image_ids, return_index=True)[1].tolist()
        said = [Said(index, int(source[index]["image_id"]), protocol.wanted(source[index])[1], 1.0) for index in chosen]
        rows, truth = protocol.predictions(source, said, None), protocol.truth(source)
        protocol.write(tmp_path / protocol.file, rows)
        found = protocol.score(truth, protocol.read(tmp_path / protocol.file), None)
        assert found[score] == 1 if name == "answers" else found[score] > protocol.baseline(truth)[score]
        write_texts(tmp_path / f"{name}.jpg", source, said, protocol.ratings(truth, rows), protocol.wanted, 4)
        assert (tmp_path / f"{name}.jpg").stat().st_size > 1000
        command.main([f"--benchmark={benchmark}", f"--data={data}", f"--results={tmp_path / protocol.file}"])
        assert f"{100 * found[score]:.2f}" in capsys.readouterr().out


def test_parts_of_texts_come_back(tmp_path):
    parts = Texts(tmp_path / "parts", {"weights": "a"})
    said = [Said(2, 12, "a \"red\" star\n", -0.5), Said(0, 2**40, "", 0.25)]
    parts.add(said)
    again = Texts(tmp_path / "parts", {"weights": "a"})
    assert again.finished == 1 and list(again) == said
