"""What fine-tuning trains: each mode as frozen parameters, parts without dropout, and what it adds to the model.

Source: GLIP, solver's TUNING_HIGHLEVEL_OVERRIDE; the numbers of the recipe are in `finetune/recipe.py`.
"""
import dataclasses
from typing import NamedTuple

from glipv2_jax.models.glipv2 import PARTS
from glipv2_jax.optim import default_freeze


class Mode(NamedTuple):
    """trained: regular expression of the paths that train; "" is all. still: parts without dropout, see `GLIPv2.still`."""
    trained: str
    still: tuple[str, ...]


MODES = {
    "full": Mode("", ()),
    # GLIP: linear_prob. The scales of the pyramid's levels stay, as do fusion tower and text layers, which keep their dropout.
    "linear": Mode(r"(localization/(box|centerness)|grounding)/", ("image_encoder", "fpn", "text_encoder")),
    # GLIP: language_prompt_v2, and v4, which trains the same. Nothing but a prompt that is added to the words.
    "prompt": Mode(r"prompt$", PARTS),
    # GLIP: language_prompt_v1, and v3.
    "text": Mode(r"text_encoder/", ("image_encoder", "fpn", "head")),
    # GLIPv2's first step of masks: the head alone; "full" is the second.
    "masks": Mode(r"mask_head/", PARTS),
}


def mode_of(name):
    """Raises: ValueError for a name that is not in `MODES`."""
    if name not in MODES:
        raise ValueError(f"train.tune: found {name!r}, expected one of {', '.join(MODES)}")
    return MODES[name]


def tuned_model(model_config, name, max_tokens):
    """The ModelConfig that a mode trains: "prompt" gives a model without one a prompt of `max_tokens` rows.

    Raises: ValueError for "masks" and a model without a mask head, whose kind and size only the config can say.
    """
    if mode_of(name) is MODES["masks"] and not model_config.mask_head.kind:
        raise ValueError("train.tune 'masks': found no mask head, expected model.overrides.mask_head with a kind")
    if mode_of(name) is MODES["prompt"] and not model_config.prompt_tokens:
        return dataclasses.replace(model_config, prompt_tokens=max_tokens)
    return model_config


def freeze_patterns(model_config, name, freeze=()):
    """Regular expressions of the parameters that a run leaves alone.

    Args:
      model_config: ModelConfig; its `image_encoder.frozen_stages` freeze the image encoder up to a stage, in any mode.
      name: of the mode. freeze: further patterns, `config.train.freeze`.
    """
    trained = mode_of(name).trained
    return (*default_freeze(model_config), *([rf"(?!{trained})"] if trained else []), *freeze)


def may_be_fresh(name):
    """Regular expressions of the parameters that a checkpoint from before the mode lacks."""
    return (MODES[name].trained,) if name in ("prompt", "masks") else ()
