"""What a model is made of: frozen dataclasses, and the named variants of GLIP and GLIPv2.

Sources: GLIP's released configurations; GLIPv2 (arXiv 2206.05836) for T, B and H. What the papers leave open is marked.
"""
import dataclasses

REMAT_POLICIES = ("", "nothing", "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable")


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """Swin Transformer v1, or its CoSwin form with convolutional patch embedding and merging."""
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.2            # largest rate; grows linearly with the block's index
    convolutional: bool = False       # CoSwin: overlapping 7×7 patch embedding and 3×3 merging
    frozen_stages: int = -1           # k ≥ 0: patch embedding; k ≥ 2: also stages 0 … k−2


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """`bert`: post-norm BERT. `clip`: pre-norm CLIP-style tower. Both read texts as a whole, but for those being written."""
    kind: str = "bert"
    vocab_size: int = 30522
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class MaskHeadConfig:
    """Masks inside boxes. GLIPv2: hourglasses; how many and how large the paper does not say, the reference's code has these."""
    kind: str = ""                    # "": no mask head; "hourglass" or "conv": what lies between pooling and masks
    num_blocks: int = 4
    depth: int = 1                    # halvings within an hourglass
    dilation: int = 1                 # of "conv"
    group_norm: bool = False
    pool_size: int = 14               # cells of a box along each axis; masks have twice as many: 14 gives 28, 28 gives 56
    sampling_ratio: int = 2           # samples of a cell along each axis; 0: adaptive
    num_levels: int = 3               # P3 … that boxes are read from
    fused: bool = True                # from the fusion tower; False: from the pyramid before it
    class_agnostic: bool = False      # masks of objects, whatever the words say

    @property
    def resolution(self):
        """Pixels of a mask along each axis."""
        return 2 * self.pool_size

    def __post_init__(self):
        if self.kind not in ("", "hourglass", "conv"):
            raise ValueError(f"model.mask_head.kind: found {self.kind!r}, expected '', 'hourglass' or 'conv'")
        if self.kind == "hourglass" and (self.depth < 1 or self.pool_size % 2**self.depth):
            raise ValueError(f"model.mask_head: found depth {self.depth} and pool_size {self.pool_size}, expected a depth of 1 at "
                             "least and a pool_size that halves as often")
        if not 1 <= self.num_levels <= 5 or min(self.num_blocks, self.sampling_ratio) < 0 or self.pool_size < 1:
            raise ValueError(f"model.mask_head: found {self}, expected 1 to 5 levels and no negative number")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the parameter tree and the forward pass."""
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    channels: int = 256               # FPN and head
    num_blocks: int = 6               # head blocks: fusion, text layer, DyConv
    fusion: bool = True               # False: GLIP-T (A), words meet regions only in the dot product
    fusion_dim: int = 2048
    fusion_heads: int = 8
    fusion_dropout: float = 0.1
    fusion_chunk: int = 2240          # regions per step of the fusion's scan; bounds its memory
    drop_block: float = 0.3           # FPN, training only
    text_mlp_dim: int = 3072          # text layers of the head; always a multiple of their heads
    text_heads: int = 12
    num_class_logits: int = 80        # the reference's unused classifier; 0: none
    mlm_head: bool = False
    contrastive_dim: int = 0          # width of the inter-image projections; 0: none
    prompt_tokens: int = 0            # rows of the tuned prompt, the longest text that it can be added to; 0: none
    mask_head: MaskHeadConfig = MaskHeadConfig()
    num_answers: int = 0              # answers that questions are given, GLIPv2's VQA: 3129; 0: no such head
    # Of each block in the backward pass: "" keeps all activations, "nothing" computes them again from its inputs, else the name of
    # a jax.checkpoint policy, e.g. "dots_with_no_batch_dims_saveable".
    remat: str = ""
    # Equal layers as one loop: compiling needs less time and much less memory, and the program one copy of their kernels more.
    scan_layers: bool = False
    kernels: str = "auto"             # on TPUs kernels of our own where they can, on GPUs operations in their order; "xla" (and on TPU v4): plain

    def __post_init__(self):
        if self.text_encoder.kind not in ("bert", "clip"):
            raise ValueError(f"model.text_encoder.kind: found {self.text_encoder.kind!r}, expected 'bert' or 'clip'")
        if isinstance(self.remat, bool):         # what checkpoints of the first layout say
            object.__setattr__(self, "remat", "nothing" if self.remat else "")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"model.remat: found {self.remat!r}, expected one of {REMAT_POLICIES}")
        if self.kernels not in ("auto", "xla"):
            raise ValueError(f"model.kernels: found {self.kernels!r}, expected 'auto' or 'xla'")
        if len(self.image_encoder.depths) != 4 or len(self.image_encoder.num_heads) != 4:
            raise ValueError("model.image_encoder: depths and num_heads need 4 entries, found "
                             f"{self.image_encoder.depths} and {self.image_encoder.num_heads}")
        if self.num_answers and not self.fusion:
            raise ValueError("model.num_answers: found a model without fusion, whose words have not seen the image; expected 0")
        for name, value, divisor in (("channels", self.channels, 16), ("fusion_dim", self.fusion_dim, self.fusion_heads),
                                     ("text_encoder.width", self.text_encoder.width, self.text_heads)):
            if value % divisor:
                raise ValueError(f"model.{name}: found {value}, expected a multiple of {divisor}")

    @property
    def can_write(self):
        """Whether captions can be written: by the head of masked words, from words that see the image."""
        return self.mlm_head and self.fusion


_SWIN_T = ImageEncoderConfig()
_SWIN_L = ImageEncoderConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window=12, drop_path=0.4, frozen_stages=2)
# UniCL's Swin-B; GLIPv2 names the backbone only. Drop path as Swin-B's usual 0.2.
_SWIN_B = ImageEncoderConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), window=7, drop_path=0.2)
# CoSwin-H's dimensions were never published; these are Swin-H's with CoSwin's convolutions.
_COSWIN_H = ImageEncoderConfig(352, (2, 2, 18, 2), (11, 22, 44, 88), window=7, drop_path=0.4, convolutional=True)
_CLIP_TEXT = TextEncoderConfig("clip", 49408, width=512, num_layers=12, num_heads=8, mlp_dim=2048,
                               max_positions=256, dropout=0.0)
_V2 = {"mlm_head": True, "contrastive_dim": 64}
_BH = {"text_encoder": _CLIP_TEXT, "num_blocks": 8, "text_mlp_dim": 2048, "text_heads": 8, "num_class_logits": 0, **_V2}

# Small enough to learn rendered scenes on a laptop's CPU within minutes; every part of GLIPv2-T is there.
_NANO = ModelConfig(
    ImageEncoderConfig(32, (2, 2, 2, 1), (2, 4, 8, 16), window=4, drop_path=0.0, convolutional=True),
    TextEncoderConfig("bert", 30522, width=64, num_layers=2, num_heads=4, mlp_dim=128, max_positions=256, dropout=0.0),
    channels=64, num_blocks=2, fusion_dim=256, fusion_heads=4, fusion_dropout=0.0, drop_block=0.0, text_mlp_dim=128,
    text_heads=4, num_class_logits=0, **_V2)

VARIANTS = {
    "glipv2_nano": _NANO,
    "glip_a": ModelConfig(_SWIN_T, fusion=False),
    "glip_t": ModelConfig(_SWIN_T),          # also GLIP-T (B) and (C), which differ in their data only
    "glip_l": ModelConfig(_SWIN_L, num_blocks=8),
    "glipv2_t": ModelConfig(_SWIN_T, **_V2),
    "glipv2_b": ModelConfig(_SWIN_B, **_BH),
    "glipv2_h": ModelConfig(_COSWIN_H, **_BH),
}


def model_config(variant, overrides=None):
    """Named variant with some fields replaced.

    Args:
      variant: a key of `VARIANTS`.
      overrides: nested dict of field values, as a config file writes them.
    Raises: ValueError for an unknown variant or field.
    """
    if variant not in VARIANTS:
        raise ValueError(f"model.variant: found {variant!r}, expected one of {sorted(VARIANTS)}")
    return _replace(VARIANTS[variant], dict(overrides or {}), "model")


def config_from_dict(fields):
    """ModelConfig from what a checkpoint says of its model: `dataclasses.asdict`, read back from JSON.

    Raises: ValueError for an unknown field, which a newer version may have written.
    """
    return _replace(ModelConfig(), fields, "model")


def _replace(config, fields, where):
    known = {f.name for f in dataclasses.fields(config)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"{where}: unknown fields {unknown}, expected some of {sorted(known)}")
    values = {}
    for name, value in fields.items():
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            value = _replace(current, dict(value), f"{where}.{name}")
        elif isinstance(current, tuple):
            value = tuple(value)
        values[name] = value
    return dataclasses.replace(config, **values)
