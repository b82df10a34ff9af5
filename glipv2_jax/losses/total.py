"""Sums of the loss terms."""


def combine(terms, weights=None):
    """The training loss: L_loc + L_intra + L_inter + L_mlm, each divided once, by its global count.

    Args:
      terms: dict of name -> (total, count), scalars over the global batch, as every loss of this package
        returns.
      weights: dict of name -> number; 1 where absent, as in the paper (box_loss carries its factor 2 itself).
    Returns: (loss, metrics): a scalar, and a dict with "loss", and for every term "loss_<name>" (divided,
      before its weight) and "count_<name>".
    Raises: ValueError if weights name a term that does not exist.
    """
    weights = weights or {}
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise ValueError(f"loss weights for {unknown}, but the terms are {sorted(terms)}")
    metrics = {}
    for name, (total, count) in terms.items():
        metrics[f"loss_{name}"] = total / count
        metrics[f"count_{name}"] = count
    loss = sum(weights.get(name, 1.0) * metrics[f"loss_{name}"] for name in terms)
    return loss, {"loss": loss, **metrics}
