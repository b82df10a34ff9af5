"""A sweep over a source: every record once, in parts of whole batches; a stop costs no part, another question all of them."""
import numpy as np
import pytest

from configs import common
from glipv2_jax.evaluation.parts import Found, Parts, Said, Texts
from glipv2_jax.evaluation.sweep import sweep


class Numbered:
    """Records with ids that 32 bits do not hold."""
    name, class_names, category_ids = "numbered", (), ()

    def __len__(self):
        return 7

    def image_size(self, index):
        return (60, 90) if index % 2 else (90, 60)

    def __getitem__(self, index):
        return {"image_id": 2**40 + index}


@pytest.fixture
def config():
    config = common.get_config()
    config.eval.canvases, config.eval.short_side, config.eval.max_size = ((64, 96), (96, 64)), 64, 96
    config.eval.batch_size, config.eval.records_per_part = 2, 3                    # four records a part
    return config


def text_of(canvas, indices, advance):
    return [Said(index, index, f"{canvas[0]}", 0.5) for index in map(int, indices)]


def test_every_record_once_with_the_ids_of_the_source(config, tmp_path):
    parts = sweep(Texts, tmp_path / "parts", {}, config, Numbered(), "all", text_of)
    assert sorted(one.record for one in parts) == list(range(7)) and parts.finished == 2
    assert all(one.image_id == 2**40 + one.record and one.text == ("64" if one.record % 2 else "96") for one in parts)
    some = sweep(Texts, tmp_path / "some", {}, config, Numbered(), "some", text_of, indices=np.array([1, 2, 5]))
    assert sorted(one.record for one in some) == [1, 2, 5]

    def boxes_of(canvas, indices, advance):
        return [Found(index, 0, (1.0, 1.0), np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int32))
                for index in map(int, indices)]
    assert {one.image_id for one in sweep(Parts, tmp_path / "boxes", {}, config, Numbered(), "boxes", boxes_of)} == {
        2**40 + index for index in range(7)}


def test_a_stop_costs_no_part_and_another_question_all(config, tmp_path):
    asked = []

    def look(canvas, indices, advance):
        if len(asked) == 1 and stops:
            raise KeyboardInterrupt
        asked.append(len(indices))
        return text_of(canvas, indices, advance)

    def run(**key):
        asked.clear()
        return [one.record for one in sweep(Texts, tmp_path / "parts", key, config, Numbered(), "parts", look)]
    stops = True
    with pytest.raises(KeyboardInterrupt):
        run(weights="a")
    stops = False
    assert sorted(run(weights="a")) == list(range(7)) and len(asked) == 1
    run(weights="a")
    assert not asked
    config.data.max_tokens //= 2                             # a text may be cut elsewhere
    run(weights="a")
    assert len(asked) == 2
    for change in (lambda: setattr(config.eval, "length_penalty", 0.5), lambda: None):
        change()
        run(weights="b")
        assert len(asked) == 2
        run(weights="a")
        assert len(asked) == 2
