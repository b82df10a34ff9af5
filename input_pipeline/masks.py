"""Instance masks in COCO's forms: polygons and run lengths."""
import numpy as np

_FORMS = "polygons [[x, y, …], …] or run lengths {'size': [height, width], 'counts': …}"


def decode_masks(segmentations, boxes, size, where):
    """bool [n, h, w] of the objects of an image.

    Args:
      segmentations: n of what `decode_mask` takes. boxes: [n, 4] xyxy, corners inclusive. size: (h, w).
      where: function of an object's place that names it in an error.
    Raises: ValueError for a segmentation that cannot be read.
    """
    masks = np.zeros((len(segmentations), *size), np.bool_)
    for n, (segmentation, box) in enumerate(zip(segmentations, boxes, strict=True)):
        try:
            masks[n] = decode_mask(segmentation, box, size)
        except Exception as error:                              # pycocotools raises what it likes
            raise ValueError(f"{where(n)}: cannot read its segmentation: {error}") from error
    return masks


def decode_mask(segmentation, box, size):
    """bool [h, w] of one object.

    Args:
      segmentation: polygons, RLE with counts as text or as a list, or nothing: then the box is the mask.
      box: [4] xyxy. size: (h, w).
    Raises: ValueError for another form, a size or a number of pixels that does not fit; what pycocotools raises for others.
    """
    if not segmentation:
        mask = np.zeros(size, np.bool_)
        x1, y1, x2, y2 = np.round(box).astype(int).clip(0)
        mask[y1:y2 + 1, x1:x2 + 1] = True
        return mask
    if isinstance(segmentation, list) and all(isinstance(polygon, list) for polygon in segmentation):
        from pycocotools import mask as coco_mask  # here, as most data needs none
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(f"found {repr(segmentation)[:80]}, expected {_FORMS}")
    if not isinstance(segmentation["size"], (list, tuple)) or list(segmentation["size"]) != list(size):
        raise ValueError(f"found size {segmentation['size']}, expected {list(size)} (height, width)")
    counts = segmentation["counts"]
    counts = _run_lengths(counts) if isinstance(counts, (str, bytes)) else counts
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"found counts {repr(segmentation['counts'])[:80]}, expected run lengths, whole numbers from 0, or COCO's "
                         "text of them")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"found runs of {sum(counts)} pixels in all, expected {size[0] * size[1]}")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape(size[::-1]).T                       # runs go down the columns


def encode_mask(mask):
    """A bool [h, w] mask as COCO's compressed run lengths: {"size": [h, w], "counts": str}. Run lengths stay as they are."""
    if isinstance(mask, dict):
        return mask
    from pycocotools import mask as coco_mask
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _run_lengths(text):
    """Run lengths from COCO's compressed text: 5 bits a character, from the third run on the difference to
    the run two before. Not `pycocotools.mask.decode`, which warns under numpy 2 (pycocotools 2.0.11)."""
    counts, value, shift = [], 0, 0
    for character in text.encode() if isinstance(text, str) else text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:                                   # last character of this number
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
