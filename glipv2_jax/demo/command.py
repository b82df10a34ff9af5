"""`glipv2 demo`: loads a checkpoint and serves the page on this computer until Ctrl-C."""
import argparse
import importlib.util
import socket
import sys

ADDRESS = "127.0.0.1"           # never another one: the page is for the person at this computer


def main(argv=None):
    """Entry point. Exits with a message for a missing package, a port in use, or a folder without a checkpoint.

    Args:
      argv: list of str; None: those of the process.
    """
    from glipv2_jax.photos import example_caption, example_scene
    args = _parser().parse_args(argv)
    if any(importlib.util.find_spec(name) is None for name in ("flask", "waitress")):
        sys.exit('glipv2 demo: needs Flask and waitress: pip install "glipv2_jax[demo]"')
    listening = _bound(args.port)          # before the model, which takes longer to load than to be refused
    from glipv2_jax.demo.server import Example, make_app, make_server
    from glipv2_jax.main import set_up_compilation_cache, set_up_logging
    set_up_logging()
    set_up_compilation_cache()
    from glipv2_jax.predict import Detector
    try:
        detector = Detector.from_pretrained(args.checkpoint, ema=args.ema, dtype=args.dtype)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"glipv2: {error}")
    scene, names = example_scene()
    example = Example(scene, classes=". ".join(names) + ".", caption=example_caption()[1],
                      question="how many shapes are there?")
    port = listening.getsockname()[1]
    server = make_server(make_app(detector, example, port=port, title=args.checkpoint or "built-in weights: rendered shapes"), listening)
    print(f"Open http://{ADDRESS}:{port} in a browser on this computer. Ctrl-C ends the program.", flush=True)
    try:
        server.run()
    finally:
        server.close()


def _parser():
    parser = argparse.ArgumentParser("glipv2 demo", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     description="A page on this computer: drop a photograph, type words, see boxes.")
    parser.add_argument("--checkpoint", help="folder that training or `glipv2 convert` wrote; by default the small "
                        "weights of the package, which know rendered shapes")
    parser.add_argument("--port", type=int, default=8000, help="of the page; 0 takes a free one")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of computation")
    return parser


def _bound(port):
    """A socket on the port. Exits where that is not possible."""
    listening = socket.socket()
    # A program that has just ended leaves its port waiting for a minute; on Windows the option means another thing.
    if sys.platform != "win32":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
    except (OSError, OverflowError) as error:
        listening.close()
        sys.exit(f"glipv2 demo: cannot listen on port {port}: {error}. Another one: --port={port + 1}, or any free "
                 "one: --port=0")
    return listening
