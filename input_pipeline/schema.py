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
| `asked` | list of lists of (begin, end), optional | phrases that a model is asked for, where they are not those of the boxes |
| `masks` | bool [n, h, w], optional | instance masks |
| `questions` | list of {"question", "answer"}, optional | of a source that `asks` one, the caption, with `answers`, what each of ten people said |
| `is_crowd` | bool [n], optional | read by scoring; such boxes never reach a batch |
| `negatives` | int [k], optional | classes known to be absent: where given, only these are drawn as negatives (LVIS) |
| `about` | dict, optional | what evaluation asks of a record beside its boxes, under the names of its file; `references`, all captions of the image |

A **source** has `name: str`, `class_names: tuple[str, ...]` (empty for captions), `category_ids: tuple[int, ...]`
(the ids that result files use, same order), `len(source)` and `source[index] -> record`. Reading index i twice
gives equal records. Optional: `image_size(index) -> (height, width)` without decoding, by which images are sorted
where there are several canvases (evaluation needs it then), and `image_sizes`, int [n, 2], all of them at once;
`caption(index) -> str` without the image, for captions; `image_bytes(index)`, the image file as it is, where there is one; `file_name(index)`, what the annotations call it;
`phrases`, what prompts call the classes where that is more than their names (`prompts.names_of`); `class_about`, a dict for
each class with its `synonym` and `definition` (`prompts.worded`); `replace_empty`, true
of image-text pairs with pseudo boxes: in training another record takes the place of one without boxes, and captions of
others may be packed around its own. `TASKS` says what else the texts of a source may be for: `asks`, its captions are questions
to be answered, and then `possible_answers` may say what may be answered, or `questions(index)` give them without the image; `writes`, they
are to be written by the model; not `names_boxes`, nobody has said which boxes the words name. `image_ids`, int [n], where
several records may be of one image.

A **batch** is a dict of numpy arrays with the keys of `batch_spec`. A mask without a pixel is not known, since its record has
none. Where a run learns to write or to answer:

| key | shape, dtype | meaning |
|---|---|---|
| `causal` | bool [B] | the text is to be written, each word from those before it |
| `is_grounded` | bool [B] | `positive_map` is the truth about the text; False where `causal`, since regions of such an image read no text |
| `is_question` | bool [B] | the text is a question with answers; only with an answer list |
| `answer_scores` | float32 [B, N] | how right each answer of the list is, 0 to 1; zero where there is no question |

In evaluation also `record` and, of captions,
`phrase_tokens`, see `pipeline.eval_batches`.
"""
import numpy as np

# What a padded or unknown entry holds.
NO_CLASS = -1

# Attributes of a source about its texts, and what they are unless stated.
TASKS = {"asks": False, "writes": False, "names_boxes": True}


def text_task(source, name):
    """What a source states under a key of `TASKS`; the default where it states nothing."""
    return getattr(source, name, TASKS[name])


# Values of `mlm_eligible`.
MLM_NEVER, MLM_UNSCORED, MLM_SCORED = -1, 0, 1


def batch_spec(batch_size, canvas, max_tokens, max_boxes, mask_size=None, *, writes=False, num_answers=0):
    """Names, shapes and dtypes of every key of a batch.

    Args:
      batch_size: images B.
      canvas: (H, W) pixels.
      max_tokens: T.
      max_boxes: G.
      mask_size: M, with `masks` among the keys; None: without.
      writes: the run learns to write captions. num_answers: N of a run that learns to answer.
    Returns: dict of key -> (shape, numpy dtype).
    """
    b, (h, w), t, g = batch_size, canvas, max_tokens, max_boxes
    more = {"causal": ((b,), np.bool_), "is_grounded": ((b,), np.bool_)} if writes or num_answers else {}
    if num_answers:
        more |= {"is_question": ((b,), np.bool_), "answer_scores": ((b, num_answers), np.float32)}
    # each instance inside its box
    masks = {"masks": ((b, g, mask_size, mask_size), np.bool_)} if mask_size is not None else {}
    return masks | more | {
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
