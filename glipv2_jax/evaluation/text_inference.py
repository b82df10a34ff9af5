"""A model's words on every record of a source: answers to questions, captions of images. On any number of devices."""
import numpy as np

from glipv2_jax.evaluation.parts import Said, Texts
from glipv2_jax.evaluation.sweep import batches, sweep


def check(task, source, model_config, answers):
    """Raises: ValueError for a model that cannot do the task of a protocol on this source."""
    if task == "answers" and (not model_config.num_answers or answers is None):
        raise ValueError(f"{source.name}: asks questions, but this checkpoint has no head of answers (model.num_answers is 0); a result "
                         "file of another model can be scored with --results")
    if task == "captions" and not model_config.can_write:
        raise ValueError(f"{source.name}: asks for captions, but this checkpoint has no head of words (model.mlm_head is off) or no "
                         "fusion; a result file of another model can be scored with --results")


def say(predictor, mesh, config, source, tokenizer, folder, title, key, task, answers):
    """Lets a model answer or describe every record of a source, or what an evaluation that was stopped left to do.

    Args:
      predictor, mesh, config, tokenizer, folder, title, key: as for `inference.detect`.
      source: of questions, or of captions; of several captions of an image the first asks for one.
      task: "answers" or "captions". answers: AnswerList, for questions.
    Returns: Texts.
    """
    indices = None
    if task == "captions" and hasattr(source, "image_ids"):
        indices = np.sort(np.unique(source.image_ids, return_index=True)[1])

    def look(canvas, of_part, advance):
        said = []
        for batch in batches(mesh, config, source, tokenizer, canvas, of_part):
            texts = list(_batch(predictor, batch, config.eval, tokenizer, task, answers))
            said += texts
            advance(len(texts))
        return said
    key = key | {"task": task, "answers": answers.names if task == "answers" else []}
    return sweep(Texts, folder, key, config, source, title, look, indices=indices)


def _batch(predictor, batch, settings, tokenizer, task, answers):
    """Yields Said of a global batch's records."""
    levels = predictor.encode_image(batch)
    if task == "answers":
        words = predictor.encode_text(batch["token_ids"], batch["token_mask"])
        found, _ = predictor.answer(levels, words, batch["token_mask"])
    else:
        found = predictor.write(levels, tokenizer, max_words=settings.caption_words, beams=settings.beams,
                                length_penalty=settings.length_penalty)
    found, records = predictor.gather((found, batch["record"]))
    for row, record in enumerate(records.tolist()):
        if record < 0:
            continue                                                      # padding of the last batch
        if task == "answers":
            best = int(found[row].argmax())
            yield Said(record, record, answers.names[best], float(found[row, best]))
        else:
            yield Said(record, record, tokenizer.text(found.token_ids[row]), float(found.scores[row]))
