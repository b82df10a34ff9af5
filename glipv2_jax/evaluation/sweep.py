"""Every record of a source exactly once, part by part: what asking a model for boxes and for words have in common."""
import dataclasses

import jax

from glipv2_jax import sharding
from glipv2_jax.metrics import Progress
from input_pipeline import eval_batches
from input_pipeline.pipeline import eval_plan


def sweep(kind, folder, key, config, source, title, look, *, indices=None, passes=1, unit="images"):
    """Makes all parts, or those that a run which was stopped left to make.

    Args:
      kind: `parts.Parts` or `parts.Texts`. folder: for the parts.
      key: JSON-able dict that names the weights and what is asked; source, settings and longest text are added here.
      config: the run's config. source: see `input_pipeline/schema.py`. title: of the progress bar.
      look: function of (canvas, indices of the records of a part, advance) → list of Found or Said, whose `image_id` is set
        here; it calls advance(n) after n more records.
      indices: of the records; None: all of the source.
      passes: how often each is looked at. unit: what the progress bar counts.
    Returns: the parts.
    """
    e, count = config.eval, len(source) if indices is None else len(indices)
    parts = kind(folder, key | {"source": source.name, "records": count, "settings": e.to_dict(),
                                "max_tokens": config.data.max_tokens})
    size = -(-e.records_per_part // e.batch_size) * e.batch_size
    plan = eval_plan(source, [tuple(canvas) for canvas in e.canvases], e.short_side, e.max_size, indices)
    work = [(canvas, of_canvas[i:i + size]) for canvas, of_canvas in plan for i in range(0, len(of_canvas), size)]

    def done():
        return sum(len(of_part) for _, of_part in work[:parts.finished]) * passes
    with Progress(title, total=count * passes, unit=unit, done=done()) as progress:
        for canvas, of_part in work[parts.finished:]:
            found = look(canvas, of_part, progress.advance)
            if jax.process_index() == 0:
                # From the source and not the device, whose whole numbers have 32 bits; ids of data sets may have more.
                found = [dataclasses.replace(one, image_id=int(source[one.record]["image_id"])) for one in found]
            parts.add(found)
            progress.update(done())                            # bad ones, too
    return parts


def batches(mesh, config, source, tokenizer, canvas, indices, **options):
    """Global batches of some records of a source, on one canvas.

    Args:
      options: of `eval_batches`, beside or in place of what the config says.
    """
    e, d = config.eval, config.data
    settings = {"batch_size": e.batch_size, "canvases": [canvas], "short_side": e.short_side, "max_size": e.max_size,
                "max_tokens": d.max_tokens, "max_boxes": d.max_boxes, "parallel_reads": d.parallel_reads, "tokenizer": tokenizer,
                "process_index": jax.process_index(), "process_count": jax.process_count(), "indices": indices}
    for batch in eval_batches(source, **settings | options):
        yield sharding.global_batch(batch, mesh)
