"""A class list encoded once: what a checkpoint for prediction keeps in the place of its text encoder and tuned prompt."""
import pathlib

import numpy as np

FILE = "words.npz"
REPLACED = ("text_encoder", "prompt")          # parameters that it stands for


def write(directory, detector, names):
    """Encodes a class list and keeps it in a folder.

    Args:
      directory: folder. detector: Detector with its text encoder. names: list of str.
    Raises: ValueError for names of which none has a letter for the tokenizer.
    """
    encoded = detector.encode_classes(names)
    if not encoded:
        raise ValueError(f"words: found {list(names)}, expected class names")
    arrays = {f"words_{place}": np.asarray(words, np.float32) for place, words in enumerate(encoded.values())}
    np.savez_compressed(pathlib.Path(directory) / FILE, names=np.array(list(names)), captions=np.array(list(encoded)), **arrays)


def read(directory):
    """What `write` left in a folder: (names, {caption: words [1, T, D]}); None without such a file."""
    path = pathlib.Path(directory) / FILE
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        words = [file[f"words_{place}"] for place in range(len(file["captions"]))]
        return file["names"].tolist(), dict(zip(file["captions"].tolist(), words))
