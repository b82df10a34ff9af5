"""`glipv2 COMMAND …`: dispatch, no more."""
import sys


def _train():
    from glipv2_jax import main
    main.run()


def _plan():
    sys.argv.append("--mode=plan")
    _train()


def _evaluate():
    if any(flag.startswith("--config") for flag in sys.argv):
        sys.argv.append("--mode=evaluate")
        _train()
    else:
        from glipv2_jax.evaluation import command
        command.main()


def _models():
    from glipv2_jax.main import set_up_logging
    set_up_logging()
    from glipv2_jax.models.describe import print_table
    print_table()


def _detect():
    from glipv2_jax import photos
    photos.detect()


def _ground():
    from glipv2_jax import photos
    photos.ground()


def _answer():
    from glipv2_jax import photos
    photos.answer()


def _describe():
    from glipv2_jax import photos
    photos.describe()


def _demo():
    from glipv2_jax.demo import command
    command.main()


def _finetune():
    from glipv2_jax.finetune import command
    command.main()


def _convert():
    from glipv2_jax.convert import command
    command.main()


def _export():
    from glipv2_jax.export import command
    command.main()


def _inspect():
    from glipv2_jax.inspect import command
    command.main()


def _prepare():
    from glipv2_jax.prepare import command
    command.main()


def _pseudo_label():
    from glipv2_jax.pseudo_labels import command
    command.main()


COMMANDS = {
    "detect": (_detect, "boxes of named classes: PHOTO… \"a cat. a dog.\""),
    "ground": (_ground, "boxes of a caption's phrases: PHOTO… \"a cat on a red chair\""),
    "answer": (_answer, "answers to a question, and boxes of its words: PHOTO… \"how many cats are there?\""),
    "describe": (_describe, "a caption, and boxes of its phrases: PHOTO…"),
    "demo": (_demo, "a page on this computer: a photograph, words, boxes"),
    "inspect": (_inspect, "a data set checked, counted and drawn as training sees it: DATA --images=… | --config=…"),
    "prepare": (_prepare, "a data set as sharded records for large runs: DATA --images=… --output=… --shards=…"),
    "pseudo-label": (_pseudo_label, "boxes for image-text pairs, to train on: --checkpoint=… --pairs=… --output=…"),
    "train": (_train, "train or resume a config, and score it: --config=… --workdir=…"),
    "finetune": (_finetune, "a checkpoint on a data set of your own, few-shot or whole: --data=… --mode= --shots= --output="),
    "plan": (_plan, "what a run needs on TPUs or GPUs that are not there: --config=… --topology=v5e:4x4 or h100:8"),
    "evaluate": (_evaluate, "a benchmark by name: --benchmark=… --data=… --checkpoint=… --output=…; or a run: --config=… --workdir=…"),
    "convert": (_convert, "GLIP, BERT or Swin weights into a checkpoint, and back: FILE… --model= --output="),
    "export": (_export, "a checkpoint as one file for other programs: --output= [--format=jax|onnx]"),
    "models": (_models, "the named models with their parameter counts"),
}


def main():
    """Entry point of the console script. An unknown command is an error."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: glipv2 COMMAND …\n" + "\n".join(f"  {key:<12} {about}" for key, (_, about) in COMMANDS.items()))
        return
    if name not in COMMANDS:
        sys.exit(f"glipv2: unknown command {name!r}, expected one of {', '.join(COMMANDS)}")
    del sys.argv[1]
    if COMMANDS[name][0] in (_train, _plan) and {"-h", "--help"} & set(sys.argv[1:]):
        print(f"glipv2 {name}: {COMMANDS[name][1]}\n")          # then what all modes of the main program share
    COMMANDS[name][0]()


if __name__ == "__main__":
    main()
