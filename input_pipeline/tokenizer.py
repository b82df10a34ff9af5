"""Text to token ids with character offsets: BERT's uncased WordPiece, from a file in the package."""
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

VOCABULARY = pathlib.Path(__file__).parent / "vocab" / "bert_base_uncased.txt"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Encoding(NamedTuple):
    """One text, padded to T tokens.

    ids: int32 [T]; position 0 is [CLS], the last real position [SEP].
    mask: bool [T], False on padding.
    offsets: int32 [T, 2], the characters [begin, end) of each token; (0, 0) on [CLS], [SEP] and padding.
    num_tokens: tokens of the whole text with [CLS] and [SEP], before truncation and padding; above T means
      truncated.
    """
    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    num_tokens: int


class Tokenizer:
    """Lower-casing BERT WordPiece.

    Args:
      vocabulary: file with one token a line, None for bert-base-uncased.
      literal: a text that spells "[SEP]" or "[MASK]" means these letters; otherwise it means the special token,
        as in the reference.
    Raises: ValueError if the file cannot be a WordPiece vocabulary.
    Source: `BertTokenizerFast` of transformers.
    """

    def __init__(self, vocabulary: str | os.PathLike | None = None, literal: bool = False):
        self.vocabulary = pathlib.Path(vocabulary or VOCABULARY)
        tokens = _read_vocabulary(self.vocabulary)
        # As `vocab_file=`, transformers 5.23 ignores the file without a word and every text becomes [UNK].
        fast = _bert_tokenizer_class()(vocab=tokens, do_lower_case=True)
        # The Rust object under it: calls through the wrapper set truncation on it, which threads must not do.
        self._backend = fast.backend_tokenizer
        self._backend.encode_special_tokens = literal
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (tokens[token] for token in SPECIAL_TOKENS)
        self.count = functools.lru_cache(maxsize=65536)(self._count)

    def encode(self, text: str, max_tokens: int = 256) -> Encoding:
        """Ids, mask and offsets, truncated and padded to `max_tokens`."""
        if max_tokens < 2:
            raise ValueError(f"max_tokens: found {max_tokens}, expected at least 2 ([CLS] and [SEP])")
        found = self._backend.encode(text)
        num_tokens = len(found.ids)
        kept = min(num_tokens, max_tokens)
        ids = np.full(max_tokens, self.pad_id, np.int32)
        offsets = np.zeros((max_tokens, 2), np.int32)
        ids[:kept] = found.ids[:kept]
        offsets[:kept] = found.offsets[:kept]
        ids[kept - 1], offsets[kept - 1] = self.sep_id, 0      # a truncated text still ends with [SEP]
        return Encoding(ids, np.arange(max_tokens) < kept, offsets, num_tokens)

    def pieces(self, ids) -> list[str]:
        """The words and pieces of words ("##s") behind ids."""
        return [self._backend.id_to_token(int(token)) for token in ids]

    def text(self, ids) -> str:
        """The text that ids spell, without special tokens; lower case, with marks at their words."""
        return self._backend.decode([int(token) for token in ids])

    def _count(self, text: str) -> int:
        """Tokens of `text` without [CLS] and [SEP]. Cached: the same class names come again and again."""
        return len(self._backend.encode(text, add_special_tokens=False).ids)


def _read_vocabulary(path: pathlib.Path) -> dict[str, int]:
    if not path.is_file():
        raise ValueError(f"{path}: no such vocabulary file; expected one token a line")
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    tokens = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    if len(tokens) != len(lines):
        repeated = len(lines) - len(tokens)
        raise ValueError(f"{path}: found {repeated} repeated tokens, expected each token once")
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise ValueError(f"{path}: found no {missing}, expected all of {list(SPECIAL_TOKENS)}")
    return tokens


def _bert_tokenizer_class():
    # Imported late: it takes two seconds. Without this variable it prints that PyTorch, which nothing here
    # needs, is not installed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import BertTokenizerFast
    return BertTokenizerFast
