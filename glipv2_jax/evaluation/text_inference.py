"""A model's words on every record of a source: answers to questions, captions of images. On any number of devices."""
import jax
import numpy as np

from glipv2_jax import sharding
from glipv2_jax.evaluation.parts import Said, Texts
from glipv2_jax.metrics import Progress
from input_pipeline import eval_batches
from input_pipeline.pipeline import eval_plan


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
    e = config.eval
    indices = range(len(source))
    if task == "captions" and hasattr(source, "image_ids"):
        indices = np.sort(np.unique(source.image_ids, return_index=True)[1])
    parts = Texts(folder, key | {"source": source.name, "records": len(indices), "settings": e.to_dict(), "task": task,
                                 "answers": answers.names if task == "answers" else []})
    size = -(-e.records_per_part // e.batch_size) * e.batch_size
    plan = eval_plan(source, [tuple(canvas) for canvas in e.canvases], e.short_side, e.max_size, indices)
    work = [(canvas, of_canvas[i:i + size]) for canvas, of_canvas in plan for i in range(0, len(of_canvas), size)]
    with Progress(title, total=len(indices), unit="images",
                  done=sum(len(of_part) for _, of_part in work[:parts.finished])) as progress:
        for canvas, of_part in work[parts.finished:]:
            said = []
            for batch in eval_batches(
                    source, batch_size=e.batch_size, canvases=[canvas], short_side=e.short_side, max_size=e.max_size,
                    max_tokens=config.data.max_tokens, max_boxes=config.data.max_boxes, tokenizer=tokenizer, indices=of_part,
                    process_index=jax.process_index(), process_count=jax.process_count(), parallel_reads=config.data.parallel_reads):
                texts = list(_batch(predictor, sharding.global_batch(batch, mesh), e, tokenizer, task, answers))
                if jax.process_index() == 0:
                    said += [Said(record, int(source[record]["image_id"]), *text) for record, *text in texts]
                progress.advance(len(texts))
            parts.add(said)
    return parts


def _batch(predictor, batch, settings, tokenizer, task, answers):
    """Yields (record, text, score) of a global batch's records."""
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
            yield record, answers.names[best], float(found[row, best])
        else:
            yield record, tokenizer.text(found.token_ids[row]), float(found.scores[row])
