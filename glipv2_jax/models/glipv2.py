"""GLIPv2: image and text encoders, fusion tower, heads. Pure functions of arrays; losses and decoding live elsewhere."""
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models.bert import Bert, BertLayer, attention_mask
from glipv2_jax.models.clip_text import ClipLayer, ClipText
from glipv2_jax.models.config import ModelConfig
from glipv2_jax.models.dyhead import DyConv
from glipv2_jax.models.fpn import FPN
from glipv2_jax.models.fusion import Fusion
from glipv2_jax.models.heads import ContrastiveHead, GroundingHead, LocalizationHead, MLMHead
from glipv2_jax.models.layers import TORCH_DEFAULT, flatten, named, rematerialised, scanned, unflatten
from glipv2_jax.models.mask_head import MaskHead
from glipv2_jax.models.swin import Swin
from glipv2_jax.models.understanding import AnswerHead
from glipv2_jax.sharding import constrain_batch

# Of channels B, G, R in 0 … 255: the released weights were trained on OpenCV's channel order.
PIXEL_MEAN = np.array([103.530, 116.280, 123.675], np.float32)
PIXEL_STD = np.array([57.375, 57.120, 58.395], np.float32)

PARTS = ("image_encoder", "fpn", "text_encoder", "head")      # head: fusion tower and what reads from it


@flax.struct.dataclass
class Outputs:
    """Predictions for every anchor and token, float32. A anchors run over levels P3 … P7, row-major inside a level."""
    box_deltas: jax.Array                          # [B, A, 4]
    centerness: jax.Array                          # [B, A] logits
    alignment_logits: jax.Array                    # [B, A, T]
    class_logits: jax.Array | None                 # [B, A, 80], the reference's unused classifier
    region_embeddings: jax.Array | None            # [B, A, E] unit vectors, un-fused
    text_embeddings: jax.Array | None              # [B, T, E] unit vectors, un-fused
    contrastive_log_scale: jax.Array | None        # scalar
    mlm_logits: jax.Array | None                   # [B, M, V] at the asked positions
    mask_inputs: tuple | None                      # (levels, words) for `segment`, where there is a mask head
    answer_logits: jax.Array | None = None         # [B, N] of the fused first token, before the sigmoid


def normalize_image(image, image_size):
    """RGB bytes → what the network is fed: B, G, R, standardised, zero outside of the valid area.

    Args:
      image: [B, H, W, 3] uint8. image_size: [B, 2] int32, valid height and width.
    Returns: [B, H, W, 3] float32.
    """
    x = (image[..., ::-1].astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
    valid = ((jnp.arange(image.shape[1])[None, :, None] < image_size[:, 0, None, None])
             & (jnp.arange(image.shape[2])[None, None, :] < image_size[:, 1, None, None]))
    return jnp.where(valid[..., None], x, 0.0)


class GLIPv2(nn.Module):
    """The whole network.

    Call:
      image: [B, H, W, 3] uint8 RGB on a padded canvas.
      image_size: [B, 2] int32, valid height and width.
      token_ids: [B, T] int32. token_mask: [B, T] bool.
      mlm_positions: [B, M] int32 tokens to predict words at, or None.
      causal: [B] bool, texts that are written word by word, or None. Of such a text what is said at token t is a function of the
        image and of tokens 0 … t alone: text layers attend to those alone, regions read no word (see `Fusion`), and all else is
        done to each word apart. Its boxes and alignments are those of regions that have not read the text.
      train: dropout, drop path and DropBlock on; needs an rng called "dropout".
    Returns: Outputs.

    still: parts that are without dropout in training, too, since they are frozen: of `PARTS`.
    """
    config: ModelConfig
    dtype: jnp.dtype = jnp.float32
    still: tuple[str, ...] = ()

    def setup(self):
        c, dtype = self.config, self.dtype
        text = c.text_encoder
        self.image_encoder = Swin(c.image_encoder, dtype, c.remat, c.scan_layers, c.kernels)
        self.fpn = FPN(c.channels, c.drop_block, dtype)
        self.text_encoder = (Bert if text.kind == "bert" else ClipText)(text, dtype, c.remat, c.scan_layers)
        fusion, dyconv = rematerialised(Fusion, c.remat, (4,)), rematerialised(DyConv, c.remat)
        text_layer = rematerialised(BertLayer if text.kind == "bert" else ClipLayer, c.remat, (3,))
        blocks = range(c.num_blocks)
        if c.fusion:
            self.fusion = [fusion(c.channels, text.width, c.fusion_dim, c.fusion_heads, c.fusion_dropout, c.fusion_chunk, 1 / c.num_blocks,
                                  c.kernels, dtype) for _ in blocks]
            options = {"dtype": dtype}
            if text.kind == "bert":
                # The reference leaves these layers at PyTorch's default initialisation.
                options |= {"dropout": text.dropout, "clamp": True, "kernel_init": TORCH_DEFAULT}
            self.text_layer = [text_layer(text.width, c.text_heads, c.text_mlp_dim, **options) for _ in blocks]
        self.dyconv = [dyconv(c.channels, dtype, c.kernels) for _ in blocks]
        self.localization = LocalizationHead(c.num_class_logits, dtype)
        self.grounding = GroundingHead(dtype)
        if c.mlm_head:
            self.mlm = MLMHead(text.vocab_size, dtype)
        if c.contrastive_dim:
            self.contrastive = ContrastiveHead(c.contrastive_dim, dtype)
        if c.prompt_tokens:
            self.prompt = self.param("prompt", named(nn.initializers.zeros, (None, "embed")), (c.prompt_tokens, text.width))
        if c.mask_head.kind:
            self.mask_head = rematerialised(MaskHead, c.remat)(c.mask_head, dtype)
        if c.num_answers:
            self.answers = AnswerHead(c.num_answers, dtype)

    def __call__(self, image, image_size, token_ids, token_mask, mlm_positions=None, train=False, causal=None):
        levels = self.encode_image(image, image_size, train)
        words = self.encode_text(token_ids, token_mask, train, causal)
        return self.predict(levels, words, token_mask, mlm_positions, train, causal)

    def encode_image(self, image, image_size, train=False):
        """Un-fused features: list of five [B, H/s, W/s, C], s = 8 … 128."""
        x = normalize_image(image, image_size).astype(self.dtype)
        levels = constrain_batch(self.image_encoder(x, self._dropout("image_encoder", train)))
        return constrain_batch(self.fpn(levels, self._dropout("fpn", train)))

    def encode_text(self, token_ids, token_mask, train=False, causal=None):
        """Un-fused word features [B, T, D]. Padding is zeroed without fusion only, and holds its row of a tuned prompt.

        Raises: ValueError for a text longer than the tuned prompt.
        """
        c, length = self.config, token_ids.shape[1]
        words = self.text_encoder(token_ids, attention_mask(token_mask, causal), self._dropout("text_encoder", train))
        if not c.fusion:
            words = words * token_mask[..., None]            # GLIP-T (A) zeroes the padding before the dot product
        if c.prompt_tokens:
            if length > c.prompt_tokens:
                raise ValueError(f"text of {length} tokens, but the tuned prompt has {c.prompt_tokens} rows")
            # By position, padding included: tuned for one class list, it says nothing of another.
            words = words + self.prompt[:length].astype(words.dtype)
        return constrain_batch(words)

    def _dropout(self, part, train):
        return train and part not in self.still

    def predict(self, levels, words, token_mask, mlm_positions=None, train=False, causal=None):
        """From un-fused features to Outputs."""
        c, train = self.config, self._dropout("head", train)
        regions = flatten(levels)
        embeddings = (None, None, None)
        if c.contrastive_dim:
            # Before fusion: fused features have seen their partner and would give the pairing away.
            embeddings = self.contrastive(regions, words)
        shapes, unfused, read = [x.shape for x in levels], levels, attention_mask(token_mask, causal)

        def block(layers, features, _=None):
            levels, words = features
            if c.fusion:
                fusion, text_layer = layers[:2]
                regions, words = constrain_batch(fusion(flatten(levels), words, token_mask, train, causal))
                words, levels = text_layer(words, read, train), unflatten(regions, shapes)
            return constrain_batch(layers[-1](levels)), words
        blocks = list(zip(self.fusion, self.text_layer, self.dyconv)) if c.fusion else [(dyconv,) for dyconv in self.dyconv]
        if c.scan_layers and not self.is_initializing():
            levels, words = scanned(blocks, block, (levels, words), self.make_rng("dropout") if train else None)
        else:
            for layers in blocks:
                levels, words = block(layers, (levels, words))
        deltas, centerness, class_logits = self.localization(levels)
        mlm_logits = None
        if mlm_positions is not None:
            if not c.mlm_head:
                raise ValueError("mlm_positions were given, but model.mlm_head is off")
            mlm_logits = self.mlm(jnp.take_along_axis(words, mlm_positions[..., None], axis=1))
        elif c.mlm_head and self.is_initializing():
            self.mlm(words[:, :1])
        mask_inputs = None
        if c.mask_head.kind:
            mask_inputs = levels if c.mask_head.fused else unfused, words
            if self.is_initializing():
                self.segment(mask_inputs, jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool), jnp.ones((1, 1, words.shape[1]), bool))
        return Outputs(deltas, centerness, self.grounding(flatten(levels), words), class_logits, *embeddings,
                       mlm_logits, mask_inputs, self.answers(words[:, 0]) if c.num_answers else None)

    def segment(self, mask_inputs, boxes, box_mask, tokens):
        """Masks inside boxes.

        Args:
          mask_inputs: of Outputs.
          boxes: [B, K, 4] xyxy pixels of the canvas. box_mask: [B, K] bool. tokens: [B, K, T] bool, the words of each box.
        Returns: logits [B, K, M, M] float32, M = `config.mask_head.resolution`.
        """
        return constrain_batch(self.mask_head(*mask_inputs, boxes, box_mask, tokens))

    def embed(self, levels, words):
        """Un-fused features → unit vectors for the inter-image comparison: regions [B, A, E], words [B, T, E]."""
        return self.contrastive(flatten(levels), words)[:2]


def init_params(model, key):
    """Fresh parameters of a GLIPv2, nested dict of arrays."""
    return nn.unbox(_named_params(model, key))


def axis_names(model):
    """Tree of PartitionSpec: what a GLIPv2 calls the axes of its parameters."""
    return nn.get_partition_spec(jax.eval_shape(functools.partial(_named_params, model), jax.random.key(0)))


def _named_params(model, key):
    tokens = min(model.config.text_encoder.max_positions, model.config.prompt_tokens or np.inf)
    return model.init(key, jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64), jnp.zeros((1, tokens), jnp.int32),
                      jnp.ones((1, tokens), bool))["params"]
