"""Defaults that every run shares. A config file starts from these and states what differs."""
import ml_collections


def get_config():
    """The released GLIP-T recipe where it has a value."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""                    # workdir whose latest checkpoint gives the first parameters
    # Regular expressions of the paths of parameters that it may lack and that start fresh, such as those of a new head.
    config.init_fresh = ()

    config.model = ml_collections.ConfigDict()
    config.model.variant = "glipv2_t"        # a name in glipv2_jax/models/config.py
    config.model.overrides = ml_collections.ConfigDict()
    config.model.dtype = "float32"           # of computation; parameters, norms, softmax and losses stay float32

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1                    # devices along each axis; -1: what is left
    config.mesh.fsdp = 1                     # images, parameters and optimizer state are split over this axis
    config.mesh.tensor = 1                   # the heads and hidden units of a layer are split over this axis
    # Along which mesh axis an axis of a parameter is split, by the names that modules give them; the first rule whose mesh axis
    # is free and divides the size is followed, None leaves it whole. docs/scale.md
    config.mesh.rules = (("heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor"), ("embed", "fsdp"), ("mlp", "fsdp"),
                         ("heads", "fsdp"), ("vocab", "fsdp"))
    config.mesh.min_shard_size = 2**14       # elements; smaller arrays stay whole

    config.data = ml_collections.ConfigDict()
    config.data.root = ""                    # prefix of the relative paths below
    config.data.train_json = ""              # COCO-format file; takes the place of `train`
    config.data.train_images = ""            # folder of its images
    config.data.train_shots = 0              # images of each class that a few-shot subset of it has; 0: all images
    config.data.train_shots_seed = 3         # which subset; 0: the lowest image ids. The challenge's seeds: 3, 30, 300
    config.data.train_copies = 1             # times that an epoch shows each of its images; GLIP: 8 for 1 shot, 4, 2, 1
    config.data.eval_json = ""
    config.data.eval_images = ""
    # Sources: dicts of kind and the kind's options. `weight` is the share of the images drawn; without weights it is
    # the number of records times `copies`, and at least half detection.
    config.data.train = ()
    config.data.eval = ()                    # sources: dicts of kind, name and the kind's options
    # A benchmark of glipv2_jax/evaluation/benchmarks.py, its folder and split; with --mode=evaluate in the place of `eval`.
    config.data.benchmark = config.data.benchmark_folder = config.data.benchmark_split = ""
    # Sources, as in `train`, mixed into the images of train_json against forgetting; their `num_negatives` is their own.
    config.data.rehearsal = ()
    config.data.rehearsal_share = 0.25       # of the images drawn; epochs count those of train_json
    config.data.class_names = ml_collections.ConfigDict()   # better words for classes of a COCO file, file's → prompt's
    config.data.wordings = ()                # as eval.wordings; each training prompt takes one of them
    config.data.bad_boxes = "error"          # of a COCO file; "repair" drops or cuts boxes outside of their image
    # The answers of a model with model.overrides.num_answers: a file, one a line; empty: the most frequent of the training data.
    config.data.answers = ""
    config.data.vocabulary = ""              # WordPiece file; empty: bert-base-uncased, which ships with the package
    # Height and width of training images, pixels: one for all images of a step, compiled once each. A record goes to
    # the smallest that holds it; sources that do not state the sizes of their images, to the squarest.
    config.data.canvases = ((800, 1344), (1344, 800), (896, 896))
    # Ops of input_pipeline/ops.py. The flip leaves captions as they are, as GLIP does; flip(0.5, True) swaps their left
    # and right.
    config.data.augment = "resize((480, 560, 640, 720, 800), 1333)|flip(0.5)"
    config.data.max_tokens = 256
    config.data.max_boxes = 100
    # Side of the grid on which a batch has each object's mask inside its box; 0: no masks. Twice the mask head's
    # resolution, so that masks are sharp in boxes that are not quite the true ones.
    config.data.mask_size = 0
    config.data.num_negatives = 85           # absent class names in a training prompt, at most; -1: always all classes
    config.data.mlm_on_detection = False     # masked words among the present class names of prompts, too
    config.data.packed_captions = 0          # captions of other images around a caption, at most; GLIP-L: 20
    config.data.unpacked_probability = 0.4   # how often a caption stands alone; of the rest, half take all that fit
    config.data.parallel_reads = 8           # examples read at a time
    config.data.max_bad_records = 0          # records that a host may fail to read, and replace, since its start

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 64             # images of a step, over all devices
    config.train.num_steps = 330_000
    # Passes over the data, each record `copies` times; takes the place of num_steps. 0: num_steps
    config.train.num_epochs = 0
    config.train.accumulation_steps = 1      # micro-batches of a step
    # A step whose loss or gradient is not finite: "stop" ends the run and names the images; "skip" leaves it out and goes on, until
    # max_skipped_steps in a row.
    config.train.not_finite = "stop"
    config.train.max_skipped_steps = 10
    config.train.spike_factor = 0.0          # steps of a loss above so many times its average are left out, too; 0: none
    config.train.ema_decay = 0.999           # of the averaged parameters; 0: none
    # What trains: "full", "linear" (box, centerness and grounding heads), "prompt" (a tensor that is added to the words),
    # "text" (the text encoder) or "masks" (the mask head); see glipv2_jax/tuning.py. What does not is without dropout.
    # model.overrides.image_encoder.frozen_stages = 2 freezes the image encoder's first stage, in any mode.
    config.train.tune = "full"
    # Regular expressions of further parameter paths to leave alone. Differs from GLIP: their dropout and drop path stay on.
    config.train.freeze = ()
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 2500
    config.train.eval_every_steps = 0        # 0: only at the end
    config.train.eval_every_epochs = 0.0     # takes the place of eval_every_steps
    # Evaluations during training choose the best state, kept in the workdir's folder `best`, and may end the run.
    config.train.select_by = ""              # score, e.g. "eval/AP"; empty: the first AP, else the first of all
    config.train.stop_patience = 0           # evaluations in a row below the best that end the run; 0: none do. GLIP: 8
    config.train.keep_checkpoints = 2
    config.train.hang_seconds = 3600.0       # without a step or a scored image, after the first one, that end a process; 0: none
    # Steps whose timeline goes to the workdir's folder `profile`, for TensorBoard and Perfetto; profile_steps 0: none.
    config.train.profile_from_step = 10
    config.train.profile_steps = 0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.text_learning_rate = 1e-5
    config.optimizer.weight_decay = 1e-4
    config.optimizer.bias_rate_factor = 2.0
    config.optimizer.clip_norm = 1.0         # of the whole gradient; 0: off
    config.optimizer.schedule = "multistep"  # or "cosine", or "plateau": falls when the score of select_by stays
    config.optimizer.milestones = (0.67, 0.89)   # fractions of the run, or steps
    config.optimizer.gamma = 0.1             # of multistep and plateau: the rate falls to this share of itself
    config.optimizer.patience = 3            # plateau only: evaluations in a row without gain before the rate falls
    config.optimizer.warmup_steps = 2000
    config.optimizer.warmup_factor = 0.001
    config.optimizer.warmup_method = "linear"
    config.optimizer.min_learning_rate = 1e-6    # of cosine and plateau
    config.optimizer.decay_weight_decay = False  # GLIP-L drops the decay ahead of the rate

    config.loss = ml_collections.ConfigDict()
    config.loss.mlm_rate = 0.15              # 0: no masked language modelling
    config.loss.mlm_positions = 64           # most words of a text that are scored
    # Most words of a caption that are learned, each from those before it, for sources of captions to be written; 0: none are.
    config.loss.caption_words = 0
    config.loss.contrastive_regions = 100    # regions of an image in the inter-image loss; 0: off
    config.loss.mask_boxes = 64              # boxes of an image in which masks are learned, at most; 0: no masks
    config.loss.mask_own_boxes = True        # true boxes, and of each object the model's own; False: true ones alone
    config.loss.weights = ml_collections.ConfigDict(
        {"box": 1.0, "centerness": 1.0, "alignment": 1.0, "inter": 1.0, "mlm": 1.0, "mask": 1.0,
         "caption": 1.0, "answer": 1.0})

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 8
    config.eval.canvases = ((800, 1344), (1344, 800), (1344, 1344))   # an image goes to the smallest that holds it
    config.eval.short_side = 800
    config.eval.max_size = 1333
    config.eval.classes_per_prompt = 0       # 0: all class names in one prompt
    config.eval.score_threshold = 0.05
    config.eval.pre_nms_top_n = 1000         # candidates of a level
    config.eval.nms_threshold = 0.6
    config.eval.max_detections = 100         # of an image and prompt
    config.eval.aggregation = "mean"         # of a class's word probabilities: mean, max or power
    # Wordings of every class name whose scores are averaged: texts with {name} or {synonym}, perhaps {definition}; what a
    # source does not tell of a class leaves its name. () is ("{name}",).
    config.eval.wordings = ()
    # Test-time augmentation: (short side, longest side, mirrored, least and largest side of a box in pixels of the view) of
    # each pass; () is one pass at short_side. `evaluation/augmented_views.py` has the released ones.
    config.eval.views = ()
    config.eval.merge = "none"               # of the views' boxes: none (suppression), vote, soft-vote or soft-nms
    config.eval.merge_threshold = 0.6
    config.eval.legacy_width = True          # COCO results with width = x2 − x1 + 1, as the reference; False: x2 − x1
    config.eval.coco_scorer = "pycocotools"  # or "faster": faster-coco-eval, equal numbers
    config.eval.masks = True                 # of a model with a mask head: masks of all that is found
    config.eval.region_score = 0.5           # least score of a box that belongs to a phrase's region (PhraseCut)
    config.eval.beams = 5                    # texts that a written caption is chosen from; 1: the likeliest word each time
    config.eval.caption_words = 20           # of a written caption, at most
    config.eval.length_penalty = 1.0         # p: captions compete by log-probability / words^p; at 0 short ones win
    config.eval.records_per_part = 256       # what a stopped evaluation repeats, at most
    config.eval.ema = False                  # score the averaged parameters
    config.eval.num_pictures = 12            # of each source, on the sheet
    return config
