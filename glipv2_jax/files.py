"""Files that are there whole or not at all."""
import os
import threading
from pathlib import Path


def write_whole(path: str | os.PathLike, text: str):
    """Writes a text file in UTF-8; its folder is made.

    Renaming within a folder is atomic: a run killed here leaves the former file, never half of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
