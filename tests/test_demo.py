"""The demo page: what its server answers and refuses, and the page itself in a headless Chromium."""
import base64
import io
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from glipv2_jax.demo import command, server
from glipv2_jax.detection.masks import PastedMasks
from glipv2_jax.detections import Answer, Detections
from glipv2_jax.draw import MASK_OPACITY

PORT = 8000
HOME = f"http://127.0.0.1:{PORT}"
EXAMPLE = server.Example(np.full((96, 128, 3), 200, np.uint8), "a red star. a blue circle.", "a star by a circle")
UNFRIENDLY = "<img src=x onerror=alert(1)>"


class KnownBoxes:
    """In the place of a Detector: the same boxes for every picture, so that a test knows what the page shows."""
    # Two of the first name; one of the second name that covers the best one; one with a low score.
    boxes = np.array([[10, 10, 59, 59], [70, 10, 109, 49], [12, 12, 60, 60], [80, 60, 119, 89]], np.float32)
    scores = np.array([0.9, 0.6, 0.55, 0.2], np.float32)
    labels = np.array([0, 0, 1, 1])

    def __init__(self):
        self.images, self.masks = [], None

    def detect(self, images, names, **_):
        return [self._found(images[0], names, None, None)]

    def ground(self, image, caption, **_):
        return self._found(image, (caption[:6], caption[10:]), caption, (((0, 6),), ((10, len(caption)),)))

    def _found(self, image, names, caption, spans):
        self.images.append(image)
        keep = self.labels < len(names)
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], tuple(names), image, caption, spans,
                          self.masks if self.masks is None else self.masks[keep])


def _png(size=(128, 96), color=(90, 120, 60)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def known():
    return KnownBoxes()


@pytest.fixture
def client(known):
    return server.make_app(known, EXAMPLE, port=PORT, title="runs/test").test_client()


def _ask(client, text="a cat. a dog.", kind="classes", image=None, name="photo.png", **more):
    data = {"text": text, "kind": kind} | ({} if image is None else {"image": (io.BytesIO(image), name)})
    answer = client.post("/find", data=data, **({"base_url": HOME, "content_type": "multipart/form-data"} | more))
    answer.request.environ["wsgi.input"].close()       # of a large body the client keeps a temporary file
    return answer.status_code, answer.get_json()


def test_the_page_is_served_and_loads_nothing_from_elsewhere(client):
    for path, kind in (("/", "text/html"), ("/demo.js", "text/javascript"), ("/demo.css", "text/css")):
        answer = client.get(path, base_url=HOME)
        assert answer.status_code == 200 and answer.mimetype == kind
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' blob: data:")
        assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in answer.text and "style=" not in answer.text
    about = client.get("/about", base_url=HOME).get_json()
    assert about["classes"] == EXAMPLE.classes and about["picture"].startswith("data:image/png;base64,")


def test_the_answer_for_an_upload_and_for_the_example(client, known):
    code, answer = _ask(client, image=_png(), name="../private/photo.png")
    assert code == 200 and answer["names"] == ["a cat", "a dog"] and answer["labels"] == [0, 0, 1, 1]
    assert answer["best"] == [True, True, False, True]
    assert answer["colors"] == ["#ff3b5c", "#18c0ff"] and answer["seconds"] >= 0
    first = answer["record"]["detection"]["instances"][0]
    assert first == {"bbox": [10, 10, 60, 60], "label": 0, "category": "a cat", "score": 0.9}
    assert answer["record"]["filename"] == answer["coco"]["images"][0]["file_name"] == "photo.png"
    assert answer["coco"]["annotations"][0]["bbox"] == [10, 10, 50, 50]
    assert answer["coco"]["categories"][1] == {"id": 2, "name": "a dog"}
    assert tuple(known.images[0][0, 0]) == (90, 120, 60)
    code, answer = _ask(client, EXAMPLE.caption, "caption")
    assert code == 200 and answer["spans"] == [[[0, 6]], [[10, 18]]] and known.images[1] is EXAMPLE.image
    assert answer["record"]["grounding"]["regions"][0]["phrase"] == "a star"


def test_masks_come_as_pictures_in_the_colour_of_their_names(known, client):
    probabilities = np.zeros((4, 28, 28), np.float32)
    probabilities[0] = probabilities[2, :, :14] = 1
    known.masks = PastedMasks(probabilities, known.boxes, (96, 128))
    _, answer = _ask(client, image=_png())
    first, nothing, left, _ = answer["masks"]
    assert nothing is None and (first["x"], first["width"]) == pytest.approx((10, 50), abs=2)
    assert left["width"] == pytest.approx(25, abs=2)
    picture = Image.open(io.BytesIO(base64.b64decode(first["picture"].removeprefix("data:image/png;base64,"))))
    assert picture.size == (first["width"], first["height"])
    assert picture.getpixel((20, 20)) == (0xff, 0x3b, 0x5c, round(255 * MASK_OPACITY))
    areas = [annotation["area"] for annotation in answer["coco"]["annotations"]]
    assert areas == [int(mask.sum()) for mask in known.masks] and areas[1] == 0
    assert answer["record"]["detection"]["instances"][0]["segmentation"]["size"] == [96, 128]


def test_a_real_detector_answers_both_kinds(detector):
    client = server.make_app(detector, EXAMPLE, port=PORT).test_client()
    code, answer = _ask(client, "a cat. a dog.\na cup", image=_png((90, 64)))
    assert code == 200 and answer["names"] == ["a cat", "a dog", "a cup"] and answer["labels"]
    scores = [item["score"] for item in answer["record"]["detection"]["instances"]]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= server.LEAST_SCORE
    code, answer = _ask(client, "a cat on a red chair", "caption", image=_png((90, 64)))
    assert code == 200 and answer["names"] == ["a cat", "a red chair"]


class Talking(KnownBoxes):
    """Answers and describes, too."""
    can_answer = can_describe = True

    def answer(self, image, question, **_):
        return Answer(question, ("2", "yes"), np.array([0.75, 0.25]), self.ground(image, question))

    def describe(self, image, **_):
        return self.ground(image, "a star by a circle")


def test_questions_and_descriptions_are_offered_by_models_that_can(client):
    assert client.get("/about", base_url=HOME).get_json()["kinds"] == ["classes", "caption"]
    code, answer = _ask(client, "how many?", "question")
    assert code == 400 and answer["error"] == "kind: found 'question', expected classes or caption"
    client = server.make_app(Talking(), EXAMPLE, port=PORT).test_client()
    assert client.get("/about", base_url=HOME).get_json()["kinds"] == ["classes", "caption", "question", "description"]
    code, answer = _ask(client, "a star by a circle?", "question", image=_png())
    assert code == 200 and answer["said"] == "2 75%, yes 25%" and answer["record"]["grounding"]["regions"]
    assert answer["record"]["answers"][0] == {"answer": "2", "probability": 0.75}
    code, answer = _ask(client, "", "description", image=_png())
    assert code == 200 and answer["said"] == "" and answer["record"]["grounding"]["caption"] == "a star by a circle"
    assert _ask(client, " ", "question")[0] == 400


def test_a_photograph_on_its_side_is_answered_upright(client):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 96)).save(file, "JPEG", exif=exif)
    record = _ask(client, image=file.getvalue())[1]["record"]
    assert (record["width"], record["height"]) == (96, 128)


def _header(width, height):
    """A PNG file of some pixels, as far as its header says."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + _png()[33:]


@pytest.mark.parametrize("image,code,text", [
    (b"this is no picture", 400, "photo.png: not a picture that can be read; expected JPEG"),
    (_png()[:60], 400, "photo.png: cannot read the image"),
    (b"", 400, "photo.png: not a picture"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 400, "not a picture"),
    (_png() + bytes(server.MAX_BYTES), 413, "larger than 10 MB"),
    (bytes(2 * server.MAX_BYTES), 413, "larger than 10 MB"),
    (_header(8000, 5001), 413, "more than 40 million pixels"),
    (_header(10_000, 10_000), 413, "more than 40 million pixels"),
    (_header(100_000, 100_000), 413, "more than 40 million pixels"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_files_that_cannot_be_used_are_refused_with_a_reason(client, known, image, code, text):
    found, answer = _ask(client, image=image)
    assert found == code and text in answer["error"] and not known.images


@pytest.mark.parametrize("words,text", [
    ({"text": " . .\n"}, "No words yet"), ({"text": "a" * 5001}, "5001 letters"), ({"kind": "mask"}, "'mask'"),
    ({"text": "a." * 301}, "301 classes")])
def test_words_that_cannot_be_asked_are_named(client, known, words, text):
    code, answer = _ask(client, **words)
    assert code == 400 and text in answer["error"] and not known.images


@pytest.mark.parametrize("request_,code", [
    ({"headers": {"Host": "evil.example"}}, 403),
    ({"headers": {"Host": f"evil.example:{PORT}"}}, 403),
    ({"headers": {"Host": "127.0.0.1:8001"}}, 403),
    ({"headers": {"Host": "127.0.0.1"}}, 403),
    ({"headers": {"Origin": "https://evil.example"}}, 403),
    ({"headers": {"Origin": "null"}}, 403),
    ({"headers": {"Origin": f"http://localhost:{PORT}"}}, 403),
    ({"headers": {"Sec-Fetch-Site": "cross-site"}}, 403),
    ({"content_type": "application/x-www-form-urlencoded"}, 415),
    ({"headers": {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}}, 200),
    ({"base_url": f"http://localhost:{PORT}", "headers": {"Origin": f"http://localhost:{PORT}"}}, 200),
])
def test_only_its_own_page_may_ask(client, known, request_, code):
    assert _ask(client, **request_)[0] == code and len(known.images) == (code == 200)


def test_a_foreign_name_for_this_computer_sees_nothing(client):
    for path in ("/", "/about", "/demo.js"):
        answer = client.get(path, base_url=HOME, headers={"Host": f"evil.example:{PORT}"})
        assert answer.status_code == 403 and "evil.example" in answer.get_json()["error"]


@pytest.mark.parametrize("path", ["/../server.py", "/%2e%2e/server.py", "/..%2f..%2fsetup.cfg", "/static/",
                                  "/static/demo.js", "//etc/passwd", "/demo.js/../../command.py", "/index.html", "/example.png"])
def test_nothing_but_the_named_files_is_served(client, path):
    assert client.get(path, base_url=HOME).status_code in (308, 404)


def test_markup_in_names_stays_text(client):
    code, answer = _ask(client, f"{UNFRIENDLY}. a dog", image=_png(), name=f"{UNFRIENDLY}.png")
    assert code == 200 and answer["names"][0] == UNFRIENDLY and answer["record"]["filename"] == f"{UNFRIENDLY}.png"
    response = client.get(f"/{UNFRIENDLY}", base_url=HOME)
    assert response.status_code == 404 and response.mimetype == "application/json"


def test_one_forward_pass_at_a_time(known):
    app = server.make_app(known, EXAMPLE, port=PORT)
    inside, most = [], []

    def slow(images, names, **_):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return [known._found(images[0], names, None, None)]
    known.detect = slow
    threads = [threading.Thread(target=lambda: _ask(app.test_client())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_failure_inside_says_where_to_look(known):
    def broken(*_, **__):
        raise RuntimeError("secret")
    known.detect = broken
    code, answer = _ask(server.make_app(known, EXAMPLE, port=PORT).test_client())
    assert code == 500 and "terminal" in answer["error"] and "secret" not in answer["error"]


def test_the_command_names_a_missing_package_and_a_taken_port(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port}.*--port={port + 1}"):
            command.main([f"--port={port}"])
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'pip install "glipv2_jax\[demo\]"'):
        command.main([])


# The page in a browser


def _chromium(playwright):
    own = playwright.chromium.executable_path
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, names)), own if os.path.exists(own) else None)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: extra `test`")
    with sync_api.sync_playwright() as playwright:
        path = _chromium(playwright)
        if path is None:
            pytest.skip("no Chromium on PATH and none of playwright's own: apt install chromium")
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address():
    """The page behind waitress, as the command serves it. Its thread ends with the tests."""
    listening = command._bound(0)
    port = listening.getsockname()[1]
    waitress = server.make_server(server.make_app(KnownBoxes(), EXAMPLE, port=port, title="runs/test"), listening)
    threading.Thread(target=waitress.run, daemon=True).start()
    return f"http://127.0.0.1:{port}"


class Page:
    """A page that has shown its example, and what it asked for and complained of."""

    def __init__(self, page, address):
        self.page, self.posts, self.complaints, foreign = page, [], [], []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: self.posts.append(request.url) if request.method == "POST" else None)
        page.on("request", lambda request: request.url.startswith((address, "data:", "blob:"))
                or foreign.append(request.url))
        page.goto(address)
        self.foreign = foreign
        self.wait(1)

    def wait(self, posts):
        # Not wait_for_function: it evaluates text in the page, which the page's own rules forbid.
        self.page.locator("#find", has_text=re.compile("^Find$")).wait_for()
        self.page.wait_for_timeout(50)          # the frame takes the picture's shape, and is drawn once more
        assert len(self.posts) == posts

    def boxes(self, kind=""):
        return self.page.locator(f".box{kind}").count()

    def upload(self, content, name="photo.png"):
        self.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})

    def slide(self, value):
        self.page.locator("#threshold").fill(str(value))

    def error(self):
        return self.page.locator("#error").text_content()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1000, "height": 760})
    page = Page(context.new_page(), address)
    yield page
    assert not page.foreign
    context.close()


def test_the_page_opens_on_the_example_with_its_result(page):
    assert page.boxes() == 2 and "2 of 4 boxes" in page.page.locator("#status").text_content()
    assert page.page.locator(".phrase").all_text_contents() == ["a red star", "a blue circle"]
    assert page.page.locator("#title").text_content() == "runs/test" and not page.complaints
    # On the picture at its displayed size, not on its pixels.
    frame, edge = page.page.locator("#frame").bounding_box(), page.page.locator(".box .edge").last.bounding_box()
    assert frame["width"] / frame["height"] == pytest.approx(128 / 96, rel=0.01)
    assert (edge["x"] - frame["x"]) / frame["width"] == pytest.approx(70 / 128, abs=0.01)


def test_upload_and_result(page):
    page.upload(_png((100, 120)))
    assert page.boxes() == 0 and "what to look for" in page.page.locator("#status").text_content()
    page.page.fill("#text", f"{UNFRIENDLY}. a dog")
    page.page.keyboard.press("Control+Enter")
    page.wait(2)
    assert page.boxes() == 2 and page.page.locator(".phrase").first.text_content() == UNFRIENDLY
    assert page.page.locator("img").count() == 1 and not page.complaints
    page.upload(_png((120, 120)))                      # the words stay, so it is asked at once
    page.wait(3)
    assert page.boxes() == 2


def test_light_goes_both_ways(page):
    page.page.locator(".phrase").first.hover()
    assert page.boxes(".lit") == 2
    page.page.locator(".phrase").last.hover()
    assert page.boxes(".lit") == 0
    page.page.locator(".box").first.hover()
    assert page.boxes(".lit") == 1 and page.page.locator(".phrase.lit").all_text_contents() == ["a red star"]
    page.page.mouse.move(1, 1)
    assert page.boxes(".lit") == 0 and page.page.locator(".lit, .lighting").count() == 0
    page.page.locator(".phrase").first.focus()
    page.page.keyboard.press("Enter")
    page.page.locator(".box").first.hover()
    assert page.boxes(".lit") == 2                     # held
    page.page.keyboard.press("Escape")
    assert page.boxes(".lit") == 0 and not page.complaints


def test_the_slider_chooses_without_asking_again(page):
    for threshold, boxes in ((0.1, 3), (0.7, 1), (0.95, 0), (0.5, 2)):
        page.slide(threshold)
        assert page.boxes() == boxes
    page.slide(0.95)
    assert "best box has 0.90" in page.page.locator("#status").text_content()
    page.slide(0.1)
    page.page.check("#overlaps")
    assert page.boxes() == 4
    page.wait(1)


def test_a_caption_is_coloured_by_its_phrases(page):
    page.page.locator(".switch >> text=Caption").click()
    page.wait(2)
    assert page.page.locator("#words").text_content() == EXAMPLE.caption
    assert page.page.locator(".phrase").all_text_contents() == ["a star", "a circle"]
    page.page.fill("#text", "🐶 dogs and 🐱 <b>cats</b>")         # characters beyond 16 bits are one each
    page.page.click("#find")
    page.wait(3)
    assert page.page.locator(".phrase").all_text_contents() == ["🐶 dogs", " 🐱 <b>cats</b>"]


def test_errors_are_shown_and_go_away(page):
    page.page.fill("#text", "a dog")
    page.upload(b"this is no picture", "broken.jpg")
    page.wait(2)
    assert "broken.jpg: not a picture" in page.error() and page.boxes() == 0
    page.upload(bytes(server.MAX_BYTES + 1), "large.jpg")
    page.wait(2)                                       # not even sent
    assert "large.jpg has 10.0 MB" in page.error()
    page.upload(_png())
    page.wait(3)
    assert page.page.locator("#error").is_hidden() and page.boxes() == 2


@pytest.mark.parametrize("button,part", [("#odvg", ("detection", "instances")), ("#coco", ("annotations",))])
def test_downloads_hold_what_is_shown(page, tmp_path, button, part):
    page.slide(0.1)
    with page.page.expect_download() as waiting:
        page.page.click(button)
    waiting.value.save_as(tmp_path / "a.json")
    content = json.loads(pathlib.Path(tmp_path / "a.json").read_text())
    for key in part:
        content = content[key]
    assert [item["score"] for item in content] == pytest.approx([0.9, 0.6, 0.2])
    assert waiting.value.suggested_filename == f"example.{button[1:]}.json"


def test_it_fits_a_phone_and_the_dark(browser, address):
    context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme="dark")
    page = Page(context.new_page(), address)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360 and page.boxes() == 2
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    context.close()
