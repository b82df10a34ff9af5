"""Train and evaluate on any folder of images with a COCO-format file; class names come from the file.

    python -m glipv2_jax.main --config=configs/coco_json.py --workdir=runs/mine \
        --config.data.train_json=train.json --config.data.train_images=train/ \
        --config.data.eval_json=val.json --config.data.eval_images=val/

`configs/coco_json.py:small` (the default) is the quickstart's model on 256-pixel images: it runs on a laptop, and goes
on from a quickstart with --config.init_from=runs/quickstart. `configs/coco_json.py:full` is GLIPv2-T at the paper's
size, for an accelerator.

`glipv2 finetune` is the whole of this as one command: the recipe, several seeds, scores before and after (docs/finetune.md).

Few-shot, as the reference fine-tunes on ODinW (its batch: 4): three images of each class, four times in an epoch, scored
after every epoch; the rate falls when the AP stays, eight evaluations below the best end the run, the best is kept in
runs/mine/best:

    --config.data.train_shots=3 --config.data.train_copies=4 --config.train.num_epochs=200 \
    --config.train.eval_every_epochs=1 --config.optimizer.schedule=plateau --config.train.stop_patience=8
"""
from configs import common


def get_config(size="small"):
    if size not in ("small", "full"):
        raise ValueError(f"configs/coco_json.py:{size}: expected 'small' or 'full'")
    config = common.get_config()
    config.data.num_negatives = -1           # every class in every prompt: fine-tuning on a short list
    config.loss.mlm_rate = 0.0               # class lists have no words to guess
    config.train.num_steps = 300
    config.train.batch_size = 8
    config.train.ema_decay = 0.0
    config.train.checkpoint_every_steps = 100
    config.train.log_every_steps = 10
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.eval.batch_size = 8
    if size == "small":
        config.model.variant = "glipv2_nano"
        config.data.canvases = ((256, 256),)
        config.data.augment = "resize((160, 192, 224, 256), 256)|flip(0.5)"
        config.data.max_tokens = 64          # a longer class list needs more: 256 hold COCO's 80 names
        config.optimizer.learning_rate = 1e-3
        config.optimizer.text_learning_rate = 1e-3
        config.loss.contrastive_regions = 32
        config.eval.canvases = ((256, 256),)
        config.eval.short_side = 256
        config.eval.max_size = 256
    return config
