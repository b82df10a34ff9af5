"""The quality sheet: counts, histograms, and the worst, middling and best pairs drawn. One HTML file without a script."""
import re

import numpy as np

from glipv2_jax import draw
from glipv2_jax.inspect.sheet import Example, bars, document, figure, safe
from glipv2_jax.pseudo_labels.labels import SCORE_BINS
from input_pipeline import image_ops

_SHOWN_PHRASES = 20
_WIDTH = 640                         # pixels of a picture, at most


def page(card, summary, labelled, count):
    """HTML of everything. Text of the data is escaped.

    Args:
      card: dict of facts about the run, as `pseudo_labels.json` has it.
      summary: labels.Summary. labelled: labels.Labelled. count: pairs that are drawn.
    """
    left_out = "".join(f"<tr><th>left out: {safe(reason)}</th><td>{number:,}</td></tr>" for reason, number in
                       summary.left_out.most_common())
    facts = "".join(f"<tr><th>{safe(name)}</th><td>{safe(text)}</td></tr>" for name, text in (
        ("image-text pairs", f"{card['pairs']:,}"), ("with pseudo-labels", f"{summary.labelled:,}"),
        ("boxes", f"{summary.boxes:,}"), ("masks", f"{summary.masks:,}"), ("distinct phrases", f"{len(summary.phrases):,}"),
        ("least score", card["threshold"]), ("weights", card["weights"])))
    unreadable = "".join(f"<li>pair {pair}: {safe(error)}</li>" for pair, error in summary.unreadable)
    numbers = sorted(summary.boxes_of_pair)
    first = int(np.flatnonzero(summary.scores).min(initial=SCORE_BINS))
    hidden = len(summary.phrases) - _SHOWN_PHRASES
    parts = [
        "<header><h1>Pseudo-labels</h1></header>",
        f'<section><h2>{safe(card["name"])}</h2><div class="columns"><table>{facts}{left_out}</table>',
        bars("boxes of the phrases", summary.phrases.most_common(_SHOWN_PHRASES),
             f'<p class="hint">and {hidden:,} more phrases</p>' if hidden > 0 else ""),
        bars("boxes by score", [(f"{n / SCORE_BINS:.2f} – {(n + 1) / SCORE_BINS:.2f}", int(summary.scores[n]))
                                for n in range(first, SCORE_BINS)]),
        bars("pairs by their number of boxes", [(n, summary.boxes_of_pair[n]) for n in numbers[:_SHOWN_PHRASES]]),
        "</div>", f'<ul class="notes">{unreadable}</ul>' * bool(unreadable), "</section>"]
    for title, chosen in _chosen(summary.quality, count).items():
        parts.append(f'<section class="samples"><h2>{title}</h2><p class="hint">By the mean, over the noun phrases of the caption, of '
                     "the score of the best box, 0 for a phrase without. Words have the colour of their boxes; grey words have none.</p>")
        parts += [figure(_example(labelled, index, summary.quality[index])) for index in chosen]
        parts.append("</section>")
    return document("Pseudo-labels", parts)


def _chosen(quality, count):
    """Title → places of the worst, the middling and the best, each pair at most once."""
    order = np.argsort(quality, kind="stable")
    each = min(count, len(order)) // 3
    middle = (len(order) - each) // 2
    chosen = {"The worst": order[:each], "In the middle": order[middle:middle + each], "The best": order[::-1][:each]}
    return {title: places.tolist() for title, places in chosen.items() if len(places)}


def _example(labelled, index, quality):
    record, line = labelled[index], labelled.line(index)
    regions = line["grounding"]["regions"]
    labels = [region["phrase"] for region in regions]
    colors = draw.phrase_colors(labels)
    picture = draw.draw_detections(image_ops.pixels_of(record), record["boxes"], labels, [region["score"] for region in regions],
                                   masks=record.get("masks"), colors=colors, min_side=480)
    if picture.width > _WIDTH:
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
    caption = record["caption"]
    label_of = [None] * len(caption)
    for spans, label in zip(record["spans"], labels):
        for begin, end in spans:
            label_of[begin:end] = [label] * (end - begin)
    words = [(match.group(), label_of[match.start()]) for match in re.finditer(r"\w+|[^\w\s]", caption)]
    hint = f"pair {line['pair']}, {line['filename']}: {quality:.2f}, {len(labels)} boxes for {line['num_phrases']} phrases"
    return Example(picture, words, colors, hint)
