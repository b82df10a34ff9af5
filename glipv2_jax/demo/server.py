"""The page's server: a handful of named files, and one question, "what is in this picture?".

It runs a model for whoever reaches it, so it lets in as little as it can. It knows its own names alone, since a
foreign name may be made to point at this computer; it answers no other site's page; it reads no path and no
address that a request names; it looks at a picture's size before it decodes a pixel.
"""
import base64
import dataclasses
import importlib.resources
import io
import logging
import threading
import time

import flask
import numpy as np
import waitress
from PIL import Image, UnidentifiedImageError
from werkzeug.exceptions import HTTPException

from glipv2_jax.draw import MASK_OPACITY, phrase_colors
from input_pipeline import image_ops

log = logging.getLogger(__name__)

MAX_BYTES = 10 * 2**20              # of a file
MAX_PIXELS = 40_000_000
MAX_LETTERS, MAX_CLASSES = 5000, 300
# The page asks once for nearly everything; its slider then chooses without another forward pass.
LEAST_SCORE, MAX_DETECTIONS = 0.05, 300
SHOWN_SIDE = 1600                   # longest side of the picture that goes back to the page
# Few formats of the many that Pillow knows: some of the others start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FILES = {"/": ("index.html", "text/html"), "/demo.js": ("demo.js", "text/javascript"),
         "/demo.css": ("demo.css", "text/css")}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
                               "form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",    # a newer program on the same port has a newer page
}


@dataclasses.dataclass(frozen=True)
class Example:
    """What the page opens on: uint8 [H, W, 3] pixels, and a text for each kind of question."""
    image: np.ndarray
    classes: str
    caption: str
    question: str = ""


def make_app(detector, example, *, port, title=""):
    """The web application.

    Args:
      detector: Detector, or anything with its `detect` and `ground`; the page offers `answer` and `describe` where it `can_answer`
        and `can_describe`.
      example: Example.
      port: int, where it will be reached: a request that names another host or port is refused.
      title: what the page calls the model.
    Returns: flask.Flask.
    """
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES + 2**20          # the file, its words, and what lies between them
    app.json.ensure_ascii = False
    hosts = {f"{name}{suffix}" for name in ("127.0.0.1", "localhost")
             for suffix in ([f":{port}", ""] if port == 80 else [f":{port}"])}
    one_at_a_time = threading.Lock()
    kinds = ["classes", "caption", *(kind for kind, able in (("question", "can_answer"), ("description", "can_describe"))
                                     if getattr(detector, able, False))]

    @app.before_request
    def refuse_strangers():
        host = flask.request.headers.get("Host", "").lower()
        if host not in hosts:
            flask.abort(403, f"Host: found {host!r}, expected one of {', '.join(sorted(hosts))}")
        if flask.request.method == "POST":
            origin = flask.request.headers.get("Origin", f"http://{host}")
            site = flask.request.headers.get("Sec-Fetch-Site", "same-origin")
            if origin.lower() != f"http://{host}" or site != "same-origin":
                flask.abort(403, f"Only this program's own page may ask; this came from {origin}")

    @app.teardown_request
    def close_uploads(_):
        flask.request.close()                      # a large file lies in a temporary one

    @app.after_request
    def add_headers(response):
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def say(error):
        return {"error": error.description}, error.code

    @app.errorhandler(Exception)
    def say_where_to_look(error):
        log.exception("the demo failed", exc_info=error)
        return {"error": "The program failed; its terminal says where."}, 500

    static = importlib.resources.files(__package__) / "static"
    for path, (name, kind) in FILES.items():
        # Read now, so that no request ever reaches a file.
        body = (static / name).read_bytes()
        app.add_url_rule(path, name, lambda body=body, kind=kind: flask.Response(body, content_type=f"{kind}; "
                                                                                 "charset=utf-8"))

    @app.get("/about")
    def about():
        return {"title": title, "classes": example.classes, "caption": example.caption,
                "question": example.question, "kinds": kinds, "picture": _data_url(example.image), "maxBytes": MAX_BYTES, "leastScore": LEAST_SCORE}

    @app.post("/find")
    def find():
        if flask.request.mimetype != "multipart/form-data":
            flask.abort(415, f"Content-Type: found {flask.request.mimetype!r}, expected multipart/form-data")
        if (flask.request.content_length or 0) > app.config["MAX_CONTENT_LENGTH"]:
            flask.abort(413, _too_large())
        kind, text = flask.request.form.get("kind"), flask.request.form.get("text", "")
        names = _checked_words(kind, text, kinds)
        upload = flask.request.files.get("image")
        name, image = ("example.png", example.image) if upload is None else _read(upload)
        with one_at_a_time:
            started, said, record = time.perf_counter(), "", {}
            try:
                if kind == "classes":
                    found = detector.detect([image], names, threshold=LEAST_SCORE, max_detections=MAX_DETECTIONS)[0]
                elif kind == "question":
                    told = detector.answer(image, text, threshold=LEAST_SCORE)
                    said = ", ".join(f"{answer} {share:.0%}" for answer, share in zip(told.answers, told.probabilities))
                    found, record = told.found, told.to_odvg(name)
                elif kind == "description":
                    found = detector.describe(image, threshold=LEAST_SCORE)
                else:
                    found = detector.ground(image, text, threshold=LEAST_SCORE)
            except ValueError as error:
                log.warning("not found: %s", error)
                flask.abort(400, str(error))
            seconds = time.perf_counter() - started
        answer = _answer(found, name)
        return answer | {"record": answer["record"] | record, "said": said, "seconds": round(seconds, 3)}

    return app


def make_server(app, listening):
    """Waitress around the application.

    Args:
      app: from `make_app`. listening: a bound socket.
    Returns: server with `run()` and `close()`.
    """
    # Waitress keeps a body before the application sees it: it stops a little later, so that the clear text comes.
    return waitress.create_server(app, sockets=[listening], threads=4, ident=None, max_request_body_size=4 * MAX_BYTES)


def _too_large():
    return f"The file is larger than {MAX_BYTES // 2**20} MB. Make it smaller first."


def _checked_words(kind, text, kinds):
    """The class names of a text, or [] for another kind. Stops the request for words that cannot be asked."""
    if kind not in kinds:
        flask.abort(400, f"kind: found {kind!r}, expected {' or '.join(kinds)}")
    if kind == "description":
        return []
    if len(text) > MAX_LETTERS:
        flask.abort(400, f"The words have {len(text)} letters; at most {MAX_LETTERS} are read.")
    if not text.strip(" .\r\n\t"):
        flask.abort(400, "No words yet: type what to look for.")
    if kind != "classes":
        return []
    names = [name.strip() for name in text.replace("\n", ".").split(".") if name.strip()]
    if len(names) > MAX_CLASSES:
        flask.abort(400, f"{len(names)} classes; at most {MAX_CLASSES} are searched at once.")
    return names


def _read(upload):
    """(name, pixels) of an uploaded file. Stops the request for a file that is too large or no picture."""
    # A browser sends the bare name; only its last part is kept whatever is sent, and no file is opened by it.
    name = upload.filename.replace("\\", "/").rsplit("/", 1)[-1] or "picture"
    data = upload.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        flask.abort(413, _too_large())
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)             # reads the header only
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        flask.abort(413, f"{name}: more than {MAX_PIXELS // 10**6} million pixels. Make it smaller first.")
    except UnidentifiedImageError:
        flask.abort(400, f"{name}: not a picture that can be read; expected JPEG, PNG, WebP, GIF, BMP or TIFF.")
    except (OSError, SyntaxError, ValueError) as error:
        flask.abort(400, f"{name}: cannot read the image: {error}")
    try:
        return name, image_ops.as_pixels(picture, name=name)
    except ValueError as error:
        flask.abort(400, str(error))


def _answer(found, name):
    """What the page draws and offers for download."""
    # Labels are only carried along, so numbers in their place say which detections stay.
    numbered = dataclasses.replace(found, labels=np.arange(len(found)))
    best = set(numbered.without_overlaps().labels.tolist())
    height, width = found.image.shape[:2]
    # As in `Detections.draw`, so that page and picture file have equal colours.
    colors = phrase_colors(found.names if found.caption is not None else [*found.phrases, *found.names])
    rows = found.to_coco(1)
    areas = [row["bbox"][2] * row["bbox"][3] for row in rows]
    tints = []
    for k, mask in enumerate([] if found.masks is None else found.masks):      # each is as large as the picture
        areas[k] = int(mask.sum())
        tints.append(_tint(mask, colors[found.phrases[k]]))
    return {
        "record": found.to_odvg(name),
        "coco": {
            "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
            "categories": [{"id": k + 1, "name": text} for k, text in enumerate(found.names)],
            "annotations": [row | {"id": k + 1, "area": area, "iscrowd": 0} for k, (row, area) in enumerate(zip(rows, areas))]},
        "labels": found.labels.tolist(), "masks": tints, "best": [k in best for k in range(len(found))],
        "names": list(found.names), "spans": found.spans,
        "colors": ["#{:02x}{:02x}{:02x}".format(*colors[text]) for text in found.names],
        "picture": _data_url(found.image)}


def _tint(mask, color):
    """A mask as a picture of its colour and the place where it lies, in pixels of the image; None for one without a pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    inside = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    picture = Image.new("RGBA", inside.shape[::-1], color)
    picture.putalpha(Image.fromarray(inside.astype(np.uint8) * round(255 * MASK_OPACITY)))
    return {"x": int(columns[0]), "y": int(rows[0]), "width": inside.shape[1], "height": inside.shape[0],
            "picture": _encoded(picture, "PNG")}


def _data_url(pixels):
    """The picture as the model saw it: upright, opaque, and in a format that every browser shows."""
    # Small drawings suffer most from JPEG.
    return _encoded(Image.fromarray(pixels), "PNG" if max(pixels.shape) <= 512 else "JPEG")


def _encoded(picture, kind):
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
