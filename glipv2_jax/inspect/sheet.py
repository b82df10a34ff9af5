"""The page: what is wrong, what there is, and samples as the model will see them. One HTML file without a script."""
import base64
import collections
import html
import io
import logging

import numpy as np

from glipv2_jax import draw
from glipv2_jax.inspect import summary
from input_pipeline import BadRecords
from input_pipeline.pipeline import train_reader

_WIDTH = 960                         # pixels of a sample's picture, at most
_SHOWN_WORDS = 20                    # bars of classes or phrases
_ENDLESS = 2**62

Example = collections.namedtuple("Example", "image tokens colors hint")
Example.__doc__ = """A picture with its words, to be drawn.

image: PIL picture with boxes. tokens: [(piece of the text, label of its boxes or None)] in order. colors: label → (r, g, b).
hint: line below.
"""


def draw_samples(options, count):
    """Examples of the training stream, augmented and with the prompts of its first steps.

    Args:
      options: as `registry.train_options` gives them.
      count: how many; at most one for each record.
    Returns: list of Example, and "" or why there are no more of them.
    """
    tokenizer, sources = options["tokenizer"], options["sources"]
    log = logging.getLogger("input_pipeline")
    level = log.level
    log.setLevel(logging.ERROR)                                # bad records have been listed
    examples = []
    try:
        read = train_reader(**options | {"batch_size": 1}, bad_records=BadRecords(_ENDLESS))
        for step in range(min(count, sum(map(len, sources)))):
            found = read(step, 0)
            examples.append(_example(found, sources[int(found["source"])].name, tokenizer))
    except ValueError as error:
        return examples, str(error)
    finally:
        log.setLevel(level)
    return examples, ""


def _example(found, source, tokenizer):
    height, width = found["image_size"]
    pieces = tokenizer.pieces(found["token_ids"][found["token_mask"]])
    rows = found["positive_map"][found["box_mask"]][:, :len(pieces)]
    labels = [_text(pieces, row) for row in rows]
    colors = draw.phrase_colors(labels)
    picture = draw.draw_detections(found["image"][:height, :width], found["boxes"][found["box_mask"]], labels,
                                   colors=colors, min_side=480)
    if picture.width > _WIDTH:
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
    # A word of two phrases takes the colour of the shorter one, the more exact of the two.
    label_of = [None] * len(pieces)
    for place in np.argsort(-rows.sum(axis=1), kind="stable"):
        for token in np.flatnonzero(rows[place]):
            label_of[token] = labels[place]
    hint = (f"{source}, image {int(found['example_id'])}, {len(labels)} box{'es' * (len(labels) != 1)}, {len(pieces)} tokens")
    return Example(picture, list(zip(pieces, label_of)), colors, hint)


def _text(pieces, row):
    """The words of a box, pieces put together."""
    return " ".join(pieces[t] for t in np.flatnonzero(row)).replace(" ##", "") or "(no words)"


def page(all_findings, overlaps, examples, why_not=""):
    """HTML of everything. Text of the data is escaped.

    Args:
      all_findings: list of records.Findings. overlaps: list of dicts of `leaks.overlap`, with `name`.
      examples: list of Example. why_not: why there are not more, or "".
    """
    problems = sum(len(f.problems) for f in all_findings) + sum(len(o["problems"]) for o in overlaps)
    verdict = f"{problems:,} problem{'s' * (problems > 1)}" if problems else "nothing bad found"
    parts = [f'<header><h1>Data inspected</h1><p class="{"bad" if problems else "good"}">{verdict}</p></header>']
    parts += [_of_source(findings) for findings in all_findings]
    parts.append(_of_overlaps(overlaps))
    parts.append('<section class="samples"><h2>As training sees them</h2><p class="hint">After augmentation, on the '
                 "prompt that is drawn with them. Words have the colour of the boxes that they name; grey words name "
                 "nothing in the picture. ## marks a piece that goes on with the word before it.</p>")
    parts += [figure(example) for example in examples]
    if why_not:
        parts.append(f'<p class="bad">{safe(why_not)}</p>')
    parts.append("</section>")
    return document("Data inspected", parts)


def document(title, parts):
    """A whole page in the style of this one. parts: list of HTML."""
    return _PAGE.replace("TITLE", safe(title)).replace("BODY", "\n".join(parts))


def _of_source(findings):
    rows = "".join(f"<tr><th>{safe(title)}</th><td>{safe(text)}</td></tr>" for title, text in summary.facts(findings))
    parts = [f"<section><h2>{safe(findings.name)}</h2>",
             _lists(findings.problems, {text: n for text, n in findings.notes.items() if n}),
             f'<div class="columns"><table>{rows}</table>{_bars(findings)}</div></section>']
    return "".join(parts)


def _of_overlaps(overlaps):
    if not overlaps:
        return ""
    rows = "".join("<tr>" + "".join(f"<td>{safe('–' if o[key] is None else o[key])}</td>"
                                    for key in ("name", "against", "ids", "files", "pixels")) + "</tr>" for o in overlaps)
    problems = [problem for overlap in overlaps for problem in overlap["problems"]]
    notes = [note for overlap in overlaps for note in overlap["notes"]]
    return (f"<section><h2>Images that two data sets share</h2>{_lists(problems, dict.fromkeys(notes, 1))}"
            '<table class="shared"><tr><th>images of<th>that are in<th>by id<th>by file name<th>by pixels</tr>'
            f"{rows}</table></section>")


def _lists(problems, notes):
    parts = []
    for count, examples in summary.folded(problems):
        rest = f"<li>and {count - len(examples):,} more, in report.json</li>" if count > len(examples) else ""
        items = "".join(f"<li>{safe(example)}</li>" for example in examples)
        parts.append(f'<div class="problem"><b>{count:,}</b><ul>{items}{rest}</ul></div>')
    if notes:
        ordered = sorted(notes.items(), key=lambda note: -note[1])
        parts.append('<ul class="notes">' + "".join(f"<li>{f'<b>{n:,}</b> ' * (n > 1)}{safe(text)}</li>"
                                                    for text, n in ordered) + "</ul>")
    return "".join(parts)


def _bars(findings):
    found = summary.words(findings)
    if not found:
        return ""
    kind = "classes" if findings.class_names else "phrases"
    hidden = len(found) - _SHOWN_WORDS
    rest = f"<p class='hint'>{hidden:,} more {kind} in report.json</p>" if hidden > 0 else ""
    rare = summary.rare(findings)
    if rare:
        rest += f"<p class='hint'>rare: {safe(', '.join(f'{word} {count}' for word, count in rare))}</p>"
    return bars(f"boxes of the {kind}", found[:_SHOWN_WORDS], rest)


def bars(title, counts, rest=""):
    """A bar for each of [(name, count)]. rest: HTML that stands below."""
    most = max((count for _, count in counts), default=1) or 1
    rows = "".join(f'<div><span>{safe(name)}</span><i style="width:{100 * count / most:.1f}%"></i><em>{count:,}</em></div>'
                   for name, count in counts)
    return f'<div class="bars"><h3>{safe(title)}</h3>{rows}{rest}</div>'


def figure(example):
    """A picture over its words, which have the colours of their boxes."""
    file = io.BytesIO()
    example.image.save(file, "JPEG", quality=82)
    picture = base64.b64encode(file.getvalue()).decode("ascii")
    words, last = [], None
    for piece, label in example.tokens:
        joined = piece.startswith("##") or piece in ".,;:!?)'"
        style = ""
        if label is not None:
            color = example.colors[label]
            ink = draw.readable_on(color)
            style = f' style="background:rgb{color};color:rgb{ink}" class="named"'
        elif piece in ("[CLS]", "[SEP]"):
            style = ' class="special"'
        # Pieces of one phrase share a chip.
        if words and label is not None and label == last:
            words[-1] = words[-1].removesuffix("</span>") + ("" if joined else " ") + safe(piece) + "</span>"
        else:
            words.append(("" if joined or not words else " ") + f"<span{style}>{safe(piece)}</span>")
        last = label
    return (f'<figure><img src="data:image/jpeg;base64,{picture}" alt="" width="{example.image.width}" height="{example.image.height}"><figcaption>'
            f'<p class="words">{"".join(words)}</p>'
            f'<p class="hint">{safe(example.hint)}</p></figcaption></figure>')


def safe(text):
    """Text of the data, escaped."""
    return html.escape(str(text))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>TITLE</title>
<style>
:root { --ink: #1b1d21; --soft: #6c727c; --line: #e4e6ea; --paper: #fff; --page: #f5f6f8; --good: #13795b; --bad: #c02a3d; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
header { display: flex; align-items: baseline; gap: 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 0 0 .7rem; } h3 { font-size: .9rem; margin: 0 0 .5rem; }
header p { font-size: 1.1rem; font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
section:not(.samples) { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem 1.4rem;
  margin-bottom: 1.2rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 1.5rem 2.5rem; align-items: start; }
table { border-collapse: collapse; font-size: .9rem; } th { text-align: left; font-weight: 500; color: var(--soft);
  padding: .25rem 1rem .25rem 0; vertical-align: top; white-space: nowrap; } td { padding: .25rem 0; }
.shared th, .shared td { padding-right: 2rem; }
.bars div { display: grid; grid-template-columns: 11rem 1fr 4rem; align-items: center; gap: .6rem; font-size: .85rem; }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: right; }
.bars i { height: .7rem; border-radius: 4px; background: linear-gradient(90deg, #4f8dff, #18c0ff); min-width: 2px; }
.bars em { font-style: normal; color: var(--soft); font-variant-numeric: tabular-nums; }
.problem { display: flex; gap: .9rem; background: #fdf1f2; border-left: 4px solid var(--bad); border-radius: 6px;
  padding: .5rem .9rem; margin-bottom: .6rem; font-size: .85rem; overflow-wrap: anywhere; }
.problem b { color: var(--bad); font-size: 1.05rem; } .problem ul { margin: 0; padding-left: 1rem; }
.notes { margin: 0 0 1rem; padding-left: 1.2rem; font-size: .88rem; } .notes li::marker { color: #e0a100; }
.hint { color: var(--soft); font-size: .82rem; margin: .4rem 0; }
.samples { columns: 3 340px; column-gap: 1rem; } .samples h2, .samples > .hint { column-span: all; }
.samples h2 { margin-top: 1.8rem; }
figure { break-inside: avoid; margin: 0 0 1rem; background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  overflow: hidden; } figure img { display: block; width: 100%; height: auto; } figcaption { padding: .6rem .9rem .4rem; }
.words { margin: 0; max-height: 16rem; overflow: auto; color: #9aa0a9; line-height: 1.75; font-size: .88rem; }
.words .named { box-decoration-break: clone; -webkit-box-decoration-break: clone; border-radius: 5px; padding: .08rem .35rem; font-weight: 600; }
.special { font-size: .7rem; opacity: .7; }
</style></head><body>
BODY
</body></html>
"""
