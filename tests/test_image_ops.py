import io
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline import image_ops

ORIENTATION = 0x0112


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height=6, width=10):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width) * 20
    pixels[..., 1] = np.arange(height)[:, None] * 30
    return pixels


def test_decodes_bytes_and_paths(tmp_path):
    pixels = gradient()
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.fromarray(pixels)))
    for file in (path, str(path), path.read_bytes()):
        found = image_ops.decode(file)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("mode, value, expected", [
    ("L", 90, (90, 90, 90)),
    ("1", 1, (255, 255, 255)),
    ("LA", (90, 0), (255, 255, 255)),
    ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
    ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
    ("I;16", 65535, (255, 255, 255)),
    ("I;16", 257 * 90, (90, 90, 90)),
])
def test_every_mode_becomes_rgb(mode, value, expected):
    found = image_ops.decode(encoded(Image.new(mode, (4, 3), value)))
    assert found.shape == (3, 4, 3)
    assert (found == expected).all()


def test_palette_with_and_without_transparency():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert (image_ops.decode(encoded(image)) == (200, 100, 50)).all()
    assert (image_ops.decode(encoded(image, transparency=1)) == 255).all()
    assert (image_ops.decode(encoded(image, transparency=b"\xff\x00")) == 255).all()


def test_cmyk():
    found = image_ops.decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert (np.abs(found.astype(int) - (255, 0, 0)) < 6).all()


@pytest.mark.parametrize("orientation, undo", [
    (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud),
    (6, lambda x: np.rot90(x, -1)), (8, np.rot90),
])
def test_exif_orientation(orientation, undo):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.fromarray(gradient()), exif=exif)
    np.testing.assert_array_equal(image_ops.decode(data), undo(gradient()))
    np.testing.assert_array_equal(image_ops.decode(data, upright=False), gradient())


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "half.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path.write_bytes(encoded(Image.fromarray(noise), "JPEG")[:1000])
    with pytest.raises(ValueError, match="half.jpg: cannot read the image: .*truncated"):
        image_ops.decode(path)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="half.jpg: cannot read the image"):
        image_ops.decode(path)
    with pytest.raises(ValueError, match="absent.png: cannot read the image"):
        image_ops.decode(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="upload 7: cannot read"):
        image_ops.decode(b"", name="upload 7")
    with pytest.raises(ValueError, match="mode 'F', expected 8 or 16 bits"):
        image_ops.decode(encoded(Image.new("F", (2, 2)), "TIFF"))


def test_an_image_that_claims_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    data = bytearray(encoded(Image.fromarray(gradient())))
    data[16:24] = (200_000).to_bytes(4, "big") * 2                     # width and height in the header of a PNG
    crc = zlib.crc32(data[12:29])
    data[29:33] = crc.to_bytes(4, "big")
    with pytest.raises(ValueError, match="bomb.png: cannot read the image: .*40000000000 pixels"):
        image_ops.decode(bytes(data), name="bomb.png")
    path, data = tmp_path / "a.png", encoded(Image.fromarray(gradient()))
    path.write_bytes(data)
    monkeypatch.setattr(image_ops, "MAX_PIXELS", 60)
    assert image_ops.decode(data).shape == (6, 10, 3)
    monkeypatch.setattr(image_ops, "MAX_PIXELS", 59)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    for file in (data, path):
        with pytest.raises(ValueError, match="found 6x10 pixels, expected at most 59 in all"):
            image_ops.decode(file)


def test_resized_size_equals_the_reference(load_reference):
    cases = load_reference("data_side.json")["resize_800_1333"]
    assert cases
    for case in cases:
        width, height = case["size_wh"]
        assert list(image_ops.resized_size((height, width), 800, 1333)) == case["out_hw"]


def test_resized_size_stays_on_the_canvas():
    assert image_ops.resized_size((640, 480), 800, 1333, (800, 1344)) == (800, 600)
    assert image_ops.resized_size((480, 640), 800, 1333, (800, 1344)) == (800, 1066)
    assert image_ops.resized_size((1, 5000), 800, 1333, (800, 1344)) == (1, 1344)
    for height in range(20, 90, 7):
        for width in range(20, 90, 9):
            found = image_ops.resized_size((height, width), 64, 96, (50, 70))
            assert 1 <= found[0] <= 50 and 1 <= found[1] <= 70


def test_smallest_canvas():
    canvases = [(96, 96), (64, 96), (96, 64)]
    assert image_ops.smallest_canvas((40, 60), 64, 96, canvases) == (64, 96)
    assert image_ops.smallest_canvas((60, 40), 64, 96, canvases) == (96, 64)
    assert image_ops.smallest_canvas((50, 50), 80, 96, canvases) == (96, 96)
    assert image_ops.smallest_canvas((60, 20), 64, 200, [(64, 96), (96, 64)]) == (96, 64)      # holds neither


def test_boxes_from_xywh_are_inclusive():
    found = image_ops.boxes_from_xywh([[10, 20, 30, 40], [50, 50, 1, 30], [5, 5, 0.5, 0.5]])
    assert found.tolist() == [[10, 20, 39, 59], [50, 50, 50, 79], [5, 5, 5, 5]]
    assert found.dtype == np.float32
    assert image_ops.boxes_from_xywh([]).shape == (0, 4)


def test_clipped_boxes_equal_the_reference(load_reference):
    case = load_reference("data_side.json")["grounding_annotation"]
    width, height = case["size_wh"]
    boxes = [a["bbox"] for a in case["annotations"] if not a.get("iscrowd")]
    found, keep = image_ops.clip_boxes(image_ops.boxes_from_xywh(boxes), (height, width))
    assert found[keep].tolist() == case["boxes"]


def test_resize_moves_pixels_and_boxes_alike():
    image, boxes = image_ops.resize(gradient(6, 10), np.array([[2, 1, 4, 3]], np.float32), (12, 30))
    assert image.shape == (12, 30, 3)
    assert boxes.tolist() == [[6, 2, 12, 6]]
    assert boxes.dtype == np.float32
    expected = Image.fromarray(gradient(6, 10)).resize((30, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image, np.asarray(expected))


def test_flip_keeps_the_object_in_its_box():
    image = np.zeros((8, 10, 3), np.uint8)
    image[2:5, 1:4] = 255
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    flipped, moved = image_ops.flip(image, boxes)
    x1, y1, x2, y2 = moved[0].astype(int)
    assert (x1, x2) == (6, 8)
    assert flipped[y1:y2 + 1, x1:x2 + 1].all() and flipped.sum() == image.sum()
    back, boxes_back = image_ops.flip(flipped, moved)
    np.testing.assert_array_equal(back, image)
    np.testing.assert_array_equal(boxes_back, boxes)


def test_pad():
    found = image_ops.pad(np.full((3, 4, 3), 9, np.uint8), (5, 6))
    assert found.shape == (5, 6, 3)
    assert (found[:3, :4] == 9).all() and found.sum() == 9 * 36
    with pytest.raises(ValueError, match="found 3x4 pixels, expected at most the canvas of 2x6"):
        image_ops.pad(np.zeros((3, 4, 3), np.uint8), (2, 6))


def test_crop_masks():
    masks = np.zeros((2, 8, 10), np.bool_)
    masks[0, 2:6, 3:5] = True                                          # left half of its box
    masks[1] = True
    found = image_ops.crop_masks(masks, np.array([[3, 2, 6, 5], [0, 0, 9, 7]], np.float32), 4)
    np.testing.assert_array_equal(found[0], np.array([[True, True, False, False]] * 4))
    assert found[1].all()
    assert image_ops.crop_masks(masks[:0], np.zeros((0, 4)), 4).shape == (0, 4, 4)
