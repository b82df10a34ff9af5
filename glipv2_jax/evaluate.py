"""A model on data sets: detections, scores, protocol and pictures. Every image exactly once, on any number of devices."""
import dataclasses
import pathlib
import time

import jax

from glipv2_jax.evaluation import coco_json, inference, pictures, text_inference
from glipv2_jax.evaluation.protocols import PROTOCOLS
from input_pipeline import prompts
from input_pipeline.schema import text_task


@dataclasses.dataclass(frozen=True)
class EvalSource:
    """What a run is scored on. name: of its scores and folder. protocol: a name in `PROTOCOLS`; None: what suits it."""
    name: str
    source: object
    protocol: str | None = None

    def chosen_protocol(self):
        texts = {"asks": "answers", "writes": "captions"}
        return PROTOCOLS[self.protocol or next((name for about, name in texts.items() if text_task(self.source, about)),
                                               "coco" if self.source.class_names else "phrases")]


def evaluate(predictor, mesh, config, sources, tokenizer, workdir, checkpoint, answers=None):
    """Scores a model on every evaluation source and writes what it found.

    What was found is kept in parts until all is scored: the same call after a stop goes on after the last part.

    Args:
      predictor: Predictor with its parameters. mesh: its mesh. config: the run's config.
      sources: list of EvalSource. The first one's files go to `workdir`, the others' to `workdir/<name>`.
      tokenizer: input_pipeline Tokenizer. workdir: folder of the results.
      checkpoint: what the protocol calls the weights.
      answers: AnswerList of a model that answers questions.
    Raises: ValueError for a source that asks for what the model cannot do, before any work.
    Returns: dict "name/metric" → float, on process 0; on others empty. Process 0 writes the results in the benchmark's own
      format, `protocol.json` and `pictures.jpg`.
    """
    check_eval_tasks(sources, predictor.config, answers)
    scores, fingerprint, finished = {}, predictor.fingerprint(), []
    for place, chosen in enumerate(sources):
        started = time.perf_counter()
        name, source, protocol = chosen.name, chosen.source, chosen.chosen_protocol()
        folder = pathlib.Path(workdir) if place == 0 else pathlib.Path(workdir) / name
        wordings = prompts.wordings_of(source, config.eval.wordings) if source.class_names else []
        classes = inference.class_prompts(wordings, tokenizer, config.data.max_tokens,
                                          config.eval.classes_per_prompt or None) if wordings else ()
        task, about = getattr(protocol, "task", "boxes"), (folder / ".parts", f"evaluate {name}", {"weights": fingerprint})
        if task == "boxes":
            parts = inference.detect(predictor, mesh, config, source, tokenizer, *about, classes, masks=protocol.reads_masks)
        else:
            parts = text_inference.say(predictor, mesh, config, source, tokenizer, *about, task, answers)
        if jax.process_index() == 0:
            predictions = protocol.predictions(source, parts, config.eval)
            protocol.write(folder / protocol.file, predictions)
            truth = protocol.truth(source)
            found = protocol.score(truth, predictions, config.eval)
            if task != "boxes":
                found |= {f"baseline_{key}": value for key, value in protocol.baseline(truth).items()}
            scores |= {f"{name}/{key}": value for key, value in found.items() if value is not None}
            e = config.eval
            coco_json.write_protocol(folder / "protocol.json", {
                "checkpoint": f"{checkpoint}, fingerprint {fingerprint}", "dataset": f"{source.name}, {len(source)} records",
                "canvas": f"short side {e.short_side}, long side at most {e.max_size}, on the smallest of "
                          f"{[tuple(c) for c in e.canvases]} pixels that holds it",
                "prompt": [[prompt.caption for prompt in chunk] for chunk in classes] or "each caption",
                "classes_per_prompt": max((len(chunk[0].classes) for chunk in classes), default=None),
                "score_threshold": e.score_threshold, "nms_threshold": e.nms_threshold,
                "max_detections": e.max_detections, "settings": e.to_dict(), "metric": protocol.metric,
                "results": protocol.file, "scores": found,
                "seconds": time.perf_counter() - started})
            sheet = folder / "pictures.jpg", source, parts
            if task == "boxes":
                pictures.write(*sheet, config.eval.num_pictures)
            else:
                pictures.write_texts(*sheet, protocol.ratings(truth, predictions), protocol.wanted, config.eval.num_pictures)
        finished.append(parts)
    for parts in finished:
        parts.delete()
    return scores


def check_eval_tasks(sources, model_config, answers):
    """Raises: ValueError for a source among EvalSources that asks for what a model cannot say."""
    for chosen in sources:
        text_inference.check(getattr(chosen.chosen_protocol(), "task", "boxes"), chosen.source, model_config, answers)
