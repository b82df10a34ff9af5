"""The data contract: what a source returns and what a batch holds. Knows nothing of models or devices.

Letters: B images, H W canvas pixels, T tokens, G boxes (padded), n boxes of one image.

A **record** is what a source returns for one index, before any transform. A plain dict:

| key | type | meaning |
|---|---|---|
| `image` | uint8 [h, w, 3] array, or a zero-argument callable that returns one | RGB, upright (EXIF applied) |
| `image_id` | int | the id that result files use |
| `boxes` | float32 [n, 4] | `xyxy`, pixels of this image, corners inclusive (width = x2 − x1 + 1, as the reference) |
| `classes` | int32 [n] | detection: index into the source's `class_names`; caption: all −1 |
| `caption` | str, optional | present when the record is a caption; else the prompt is made from class names |
| `spans` | list of n lists of (begin, end), with `caption` | characters of the caption that name each box |
| `masks` | bool [n, h, w], optional | instance masks |
| `questions` | list of {"question", "answer"}, optional | |
| `is_crowd` | bool [n], optional | read by scoring; such boxes never reach a batch |
| `negatives` | int [k], optional | classes known to be absent: where given, only these are drawn as negatives (LVIS) |
| `about` | dict, optional | what evaluation asks of a grounding record beside its boxes, under the names of its file |

A **source** has `name: str`, `class_names: tuple[str, ...]` (empty for captions), `category_ids: tuple[int, ...]`
(the ids that result files use, same order), `len(source)` and `source[index] -> record`. Reading index i twice
gives equal records. Optional: `image_size(index) -> (height, width)` without decoding, by which images are sorted
where there are several canvases (evaluation needs it then), and `image_sizes`, int [n, 2], all of them at once; `caption(index) -> str` without the image, for captions;
`image_bytes(index)`, the image file as it is, where there is one; `file_name(index)`, what the annotations call it;
`phrases`, what prompts call the classes where that is more than their names (`prompts.names_of`); `class_about`, a dict for
each class with its `synonym` and `definition` (`prompts.worded`); `replace_empty`, true
of image-text pairs with pseudo boxes: in training another record takes the place of one without boxes, and captions of
others may be packed around its own.

A **batch** is a dict of numpy arrays with the keys of `batch_spec`. A mask without a pixel is not known, since its record has
none. In evaluation also `record` and, of captions,
`phrase_tokens`, see `pipeline.eval_batches`.
"""
import numpy as np

# What a padded or unknown entry holds.
NO_CLASS = -1

# Values of `mlm_eligible`.
MLM_NEVER, MLM_UNSCORED, MLM_SCORED = -1, 0, 1


def batch_spec(batch_size, canvas, max_tokens, max_boxes, mask_size=None):
    """Names, shapes and dtypes of every key of a batch.

    Args:
      batch_size: images B.
      canvas: (H, W) pixels.
      max_tokens: T.
      max_boxes: G.
      mask_size: M, with `masks` among the keys; None: without.
    Returns: dict of key -> (shape, numpy dtype).
    """
    b, (h, w), t, g = batch_size, canvas, max_tokens, max_boxes
    # each instance inside its box
    masks = {"masks": ((b, g, mask_size, mask_size), np.bool_)} if mask_size is not None else {}
    return masks | {
        "image": ((b, h, w, 3), np.uint8),           # RGB; normalised on the device
        "image_size": ((b, 2), np.int32),            # valid height and width on the canvas
        "token_ids": ((b, t), np.int32),
        "token_mask": ((b, t), np.bool_),
        "boxes": ((b, g, 4), np.float32),            # xyxy, canvas pixels, corners inclusive
        "box_mask": ((b, g), np.bool_),
        "positive_map": ((b, g, t), np.bool_),       # token t names box g
        "box_class": ((b, g), np.int32),             # id of the canonical class name over all sources, or NO_CLASS
        "token_class": ((b, t), np.int32),           # the same for the tokens of a detection prompt
        "mlm_eligible": ((b, t), np.int8),           # MLM_NEVER, MLM_UNSCORED or MLM_SCORED
        "source": ((b,), np.int32),                  # index of the source in the mixture
        "example_id": ((b,), np.int64),              # record's image_id; −1 on a padding example
        "original_size": ((b, 2), np.int32),         # height and width of the file
        "scale": ((b, 2), np.float32),               # canvas pixels = scale (y, x) × original pixels (of the
                                                     # part that is seen, where augmentation crops)
    }
