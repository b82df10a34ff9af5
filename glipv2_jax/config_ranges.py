"""What numbers of a config may be: told before a run starts, by the field's name, instead of by what fails later."""
import math

# Range → fields. What no range names is checked where it is used, or may be any number.
RANGES = {
    (-1, None): ("data.num_negatives",),
    (2, None): ("data.max_tokens",),                       # the first and the last are no words
    (1, None): (
        "data.max_boxes", "data.parallel_reads", "train.batch_size", "train.num_steps", "train.accumulation_steps",
        "train.log_every_steps", "train.keep_checkpoints", "train.max_skipped_steps", "eval.batch_size", "eval.short_side",
        "eval.max_size", "eval.pre_nms_top_n", "eval.max_detections", "eval.beams", "eval.caption_words", "eval.records_per_part"),
    (0, None): (
        "data.train_shots", "data.mask_size", "data.packed_captions", "data.max_bad_records", "train.num_epochs", "train.spike_factor",
        "train.checkpoint_every_steps", "train.eval_every_steps", "train.eval_every_epochs", "train.stop_patience", "train.hang_seconds",
        "train.profile_steps", "train.profile_from_step", "mesh.min_shard_size", "optimizer.learning_rate", "optimizer.text_learning_rate",
        "optimizer.weight_decay", "optimizer.bias_rate_factor", "optimizer.clip_norm", "optimizer.warmup_steps",
        "optimizer.min_learning_rate", "optimizer.patience",
        "loss.mlm_positions", "loss.caption_words", "loss.contrastive_regions", "loss.mask_boxes", "eval.classes_per_prompt",
        "eval.length_penalty", "eval.num_pictures"),
    (0, 1): (
        "data.unpacked_probability", "train.ema_decay", "optimizer.gamma", "optimizer.warmup_factor", "loss.mlm_rate",
        "eval.score_threshold", "eval.nms_threshold", "eval.merge_threshold", "eval.region_score"),
}


def check_ranges(config):
    """Raises: ValueError naming every field that is out of its range, infinite or no number; what was found and expected."""
    problems = []
    for (least, most), fields in RANGES.items():
        for field in fields:
            section, name = field.split(".")
            value = config[section][name]
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < least or most is not None and value > most:
                problems.append(f"{field}: found {value!r}, expected " + (f"at least {least}" if most is None else f"{least} to {most}"))
    if problems:
        raise ValueError("; ".join(problems))
