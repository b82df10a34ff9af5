"""Files to host-local numpy batches. Never imports glipv2_jax; TensorFlow only in `pipeline`."""

__all__ = ["BadRecords", "eval_batches", "train_batches"]


def __getattr__(name):
    # Late, so that the tokenizer, prompts and image operations do not bring TensorFlow with them.
    if name in __all__:
        from input_pipeline import pipeline
        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
