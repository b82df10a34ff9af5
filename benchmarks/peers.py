"""Open-vocabulary detectors of Hugging Face transformers with random weights, as `benchmarks.detect` calls them, on any torch device.

Nothing is downloaded: each is built from its configuration, whose defaults are those of the released model unless said
otherwise. Each keeps apart what depends on images alone, on texts alone and on both, and does no work twice that its
architecture lets it keep.
"""
import numpy as np
import torch
from torch.nn import functional
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, Owlv2Config, Owlv2ForObjectDetection
from transformers.modeling_outputs import BaseModelOutput

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)         # RGB, 0 to 255


def normalised(pixels):
    """[B, H, W, 3] uint8 → [B, 3, H, W] float32, on its device. CLIP's numbers differ a little from these, not in time."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (MEAN, STD))
    return (pixels.permute(0, 3, 1, 2).float() - mean) / std


def grounding_dino(size, **options):
    """GroundingDINO with Swin-T. Raises: ValueError for images that are too small for its queries."""
    config = GroundingDinoConfig(**options)
    places = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in (8, 16, 32, 64))
    if places < config.num_queries:
        raise ValueError(f"GroundingDINO-T: found images of {size[0]}x{size[1]}, which have {places} places, expected "
                         f"at least the {config.num_queries} that it chooses")
    torch.manual_seed(0)
    return GroundingDinoForObjectDetection(config)


class GroundingDino:
    """GroundingDINO with Swin-T.

    Args:
      tokenizer: input_pipeline Tokenizer. prompts_of: function, names → lists of names that are read together.
      size: (height, width) of its images. device: torch's.
    """
    name = "GroundingDINO-T"

    def __init__(self, tokenizer, prompts_of, size, device="cpu"):
        self.tokenizer, self.prompts_read, self.input_size, self.device = tokenizer, prompts_of, size, device
        self.model = grounding_dino(size).eval().to(device)
        # The model has no argument for features that are known: its two encoders answer with what is set here.
        inner = self.model.model
        self._backbone, self._encoder = inner.backbone.forward, inner.text_backbone.forward
        self._image = self._words = None
        # Copies, because the model appends to these lists.
        inner.backbone.forward = lambda *_: tuple(map(list, self._image))
        inner.text_backbone.forward = self._text
        self._known = {}

    def _text(self, *args, **kwargs):
        """Stands for the text encoder: the rows of its arguments are equal, one of them is enough."""
        if self._words not in self._known:
            self._known[self._words] = self._encoder(*(rows[:1] for rows in args), **kwargs).last_hidden_state
        return BaseModelOutput(self._known[self._words].expand(len(args[0]), -1, -1))

    @torch.inference_mode()
    def encode_images(self, pixels):
        """[B, h, w, 3] uint8 → what `detect` needs of them, computed."""
        images = normalised(torch.from_numpy(pixels).to(self.device))
        return images, self._backbone(images, torch.ones(len(images), *images.shape[2:], dtype=torch.long, device=self.device))

    @torch.inference_mode()
    def detect(self, pixels, names, kept=None):
        """(boxes [B, Q, 4], scores, tokens [B, Q]) of every prompt; `kept` is `encode_images`, done before."""
        images, self._image = self.encode_images(pixels) if kept is None else kept
        found = []
        for group in self.prompts_read(names):
            # The form that its processor gives to a list of labels: a full stop behind each of them.
            self._words = ". ".join(group) + "."
            count = self.tokenizer.encode(self._words, 2).num_tokens
            encoding = self.tokenizer.encode(self._words, count)
            ids = torch.from_numpy(encoding.ids).long().to(self.device).expand(len(images), count)
            outputs = self.model(images, ids)
            scores, tokens = outputs.logits.sigmoid().max(-1)
            found.append((outputs.pred_boxes.cpu(), scores.cpu(), tokens.cpu()))
        return found


class Owlv2:
    """OWLv2 with ViT-B/16.

    Args:
      size: (height, width) of its images, which it pads to a square. The released model scales that to 960 pixels;
        smaller ones are left as they are.
      device: torch's.
    """
    name = "OWLv2-B/16"

    def __init__(self, size, device="cpu"):
        torch.manual_seed(0)
        self.device = device
        side = min(960, -(-max(size) // 16) * 16)
        self.input_size = side, side
        self.model = Owlv2ForObjectDetection(Owlv2Config(vision_config={"image_size": side})).eval().to(device)
        self._known = {}

    def prompts_read(self, names):
        return [names]

    @torch.inference_mode()
    def encode_images(self, pixels):
        """[B, h, w, 3] uint8 → what `detect` needs of them, computed."""
        images = normalised(torch.from_numpy(pixels).to(self.device))
        height, width = images.shape[2:]
        side = max(*self.input_size, height, width)
        images = functional.pad(images, (0, side - width, 0, side - height))
        if side > self.input_size[0]:
            images = functional.interpolate(images, self.input_size, mode="bilinear", antialias=True)
        return self.model.image_embedder(images)[0]

    def _queries(self, names):
        """[C, D]: all class names in one batch."""
        key = tuple(names)
        if key not in self._known:
            config = self.model.config.text_config
            # [start] word pieces [end] padding, as many ids as the text encoder reads; random ones for the pieces.
            rng, words = np.random.default_rng(0), np.array([len(name.split()) for name in names])[:, None]
            place = np.arange(config.max_position_embeddings)
            ids = rng.integers(1000, 40_000, (len(names), len(place)))
            ids = np.where(place > words, np.where(place == words + 1, config.eos_token_id, 0), ids)
            ids[:, 0] = config.bos_token_id
            mask = torch.from_numpy((place <= words + 1).astype(np.int64))
            self._known[key] = self.model.owlv2.get_text_features(
                torch.from_numpy(ids).to(self.device), mask.to(self.device)).pooler_output
        return self._known[key]

    @torch.inference_mode()
    def detect(self, pixels, names, kept=None):
        """(boxes [B, P, 4], scores, labels, objectness [B, P]); `kept` is `encode_images`, done before."""
        features = self.encode_images(pixels) if kept is None else kept
        regions, queries = features.flatten(1, 2), self._queries(names)
        logits, _ = self.model.class_predictor(regions, queries.expand(len(regions), *queries.shape))
        scores, labels = logits.sigmoid().max(-1)
        return tuple(x.cpu() for x in (self.model.box_predictor(regions, features), scores, labels,
                                       self.model.objectness_predictor(regions).sigmoid()))
