import pytest

from glipv2_jax.losses import total


def test_terms_are_divided_once_and_weighted():
    terms = {"box": (6.0, 4.0), "mlm": (3.0, 1.0)}
    loss, metrics = total.combine(terms, {"mlm": 0.5})
    assert loss == 1.5 + 0.5 * 3
    assert metrics == {"loss": loss, "loss_box": 1.5, "count_box": 4.0, "loss_mlm": 3.0, "count_mlm": 1.0}
    assert total.combine(terms)[0] == 4.5


def test_weight_of_an_unknown_term_is_refused():
    with pytest.raises(ValueError, match=r"weights for \['mask'\], but the terms are \['box'\]"):
        total.combine({"box": (1.0, 1.0)}, {"mask": 1.0})
