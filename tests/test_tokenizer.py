import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from input_pipeline.tokenizer import Tokenizer

VECTORS = pathlib.Path(__file__).parent / "reference" / "wordpiece_vectors.json"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def test_equals_wordpiece_vectors(tokenizer):
    for case in json.loads(VECTORS.read_text(encoding="utf-8")):
        found = tokenizer.encode(case["text"], 512)
        assert found.num_tokens == len(case["ids"])
        assert found.ids[found.mask].tolist() == case["ids"], case["text"]
        assert found.offsets[found.mask].tolist() == case["offsets"], case["text"]


def test_equals_the_reference(tokenizer, load_reference):
    cases = load_reference("data_side.json")["tokenizer"]
    assert cases
    for case in cases:
        found = tokenizer.encode(case["text"])
        assert found.ids[found.mask].tolist() == case["input_ids"], case["text"]
        assert found.offsets[found.mask].tolist() == case["offsets"], case["text"]


def test_pads_with_zeros(tokenizer):
    found = tokenizer.encode("a cat", 8)
    assert found.ids.tolist() == [101, 1037, 4937, 102, 0, 0, 0, 0]
    assert found.mask.tolist() == [True] * 4 + [False] * 4
    assert found.offsets.tolist() == [[0, 0], [0, 1], [2, 5]] + [[0, 0]] * 5
    assert (found.ids.dtype, found.mask.dtype, found.offsets.dtype) == (np.int32, np.bool_, np.int32)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.mask_id) == (30522, 0, 103)


def test_a_long_text_ends_with_sep_and_tells_its_length(tokenizer):
    found = tokenizer.encode("cat " * 20, 8)
    assert found.ids.tolist() == [101] + [4937] * 6 + [102]
    assert found.mask.all()
    assert found.offsets[-1].tolist() == [0, 0]
    assert found.num_tokens == 22


def test_count_is_additive_over_names(tokenizer):
    assert tokenizer.count("traffic light. ") == 3
    assert tokenizer.count("") == 0
    names = ["traffic light. ", "frisbee. ", "T-shirt. "]
    assert tokenizer.encode("".join(names)).num_tokens - 2 == sum(map(tokenizer.count, names))


def test_threads_give_the_same_tokens(tokenizer):
    texts = [f"{n} cats and a thyristor-controlled lamp" for n in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(tokenizer.encode, texts))
    assert all((a.ids == tokenizer.encode(text).ids).all() for a, text in zip(found, texts))


def test_own_vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nwidget\n##s\n")
    own = Tokenizer(path)
    assert own.encode("Widgets gadget", 6).ids.tolist() == [2, 5, 6, 1, 3, 0]
    assert (own.vocab_size, own.mask_id) == (7, 4)


@pytest.mark.parametrize("content, message", [
    ("[PAD]\n[UNK]\ncat\n", r"found no \['\[CLS\]', '\[SEP\]', '\[MASK\]'\]"),
    ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\ncat\n", "found 1 repeated tokens"),
])
def test_refuses_other_files(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer(path)


def test_refuses_a_missing_file_and_no_room(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="no such vocabulary file"):
        Tokenizer(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="max_tokens: found 1"):
        tokenizer.encode("cat", 1)


def test_text_and_images_need_neither_tensorflow_nor_torch():
    code = ("import sys, input_pipeline.coco_json, input_pipeline.sources, input_pipeline.text_ops\n"
            "from input_pipeline.prompts import evaluation_prompts\n"
            "assert 'transformers' not in sys.modules\n"
            "from input_pipeline.tokenizer import Tokenizer\n"
            "evaluation_prompts(['cat'], Tokenizer())\n"
            "heavy = {'tensorflow', 'torch', 'jax', 'glipv2_jax'} & set(sys.modules)\n"
            "assert not heavy, heavy\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=VECTORS.parents[2], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
