"""XML of annotations: plain elements, nothing that a parser would have to follow or expand."""
import pathlib
from xml.etree import ElementTree

# A document type may define entities that grow to gigabytes or name files; no annotation needs one.
_FORBIDDEN = (b"<!DOCTYPE", b"<!ENTITY")


def read_xml(path: pathlib.Path) -> ElementTree.Element:
    """The root element. Raises: ValueError for a file that cannot be read, is not XML or holds more than elements."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the annotation: {error.strerror}") from error
    # Looked for in plain bytes, so the encoding must be one in which they show.
    if b"\0" in text or any(word in text.upper() for word in _FORBIDDEN):
        raise ValueError(f"{path}: found a document type or an encoding other than UTF-8, expected plain XML")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not XML: {error}") from error
