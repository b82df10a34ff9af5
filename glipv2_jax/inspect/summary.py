"""Findings in words and numbers: alike problems folded, quantiles, the terminal, and the JSON report."""
import re

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)
_EXAMPLES, _TOP, _RARE = 3, 15, 10   # shown of each kind of problem; most and least frequent words
_RARE_BOXES = 10                     # a class with fewer is hard to learn
# What differs between two problems of one kind: brackets, quotes, file names and all words with a digit.
_DETAILS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|'[^']*'|\"[^\"]*\"|\S*[\d/\\]\S*|\S+\.\w+")


def folded(problems):
    """Groups problems that differ in names and numbers alone, the most frequent first.

    Returns: list of (how many, [the first of them]).
    """
    groups = {}
    for problem in problems:
        group = groups.setdefault(re.sub(r"[\W_]+", " ", _DETAILS.sub("", problem)), [0, []])
        group[0] += 1
        if len(group[1]) < _EXAMPLES:
            group[1].append(problem)
    return sorted(map(tuple, groups.values()), key=lambda group: -group[0])


def quantiles(counter):
    """[minimum, quarter, median, three quarters, 95 %, maximum] of a Counter of numbers, [] of an empty one."""
    values = np.array(sorted(counter))
    if not len(values):
        return []
    ends = np.cumsum([counter[value] for value in values.tolist()])
    places = np.searchsorted(ends, np.array(QUANTILES) * (ends[-1] - 1), side="right")
    return values[places].tolist()


def words(findings):
    """[(class name or phrase, boxes)] of a source, the most frequent first; classes without a box are among them."""
    if findings.class_names:
        order = np.argsort(-findings.class_boxes, kind="stable").tolist()
        return [(findings.class_names[c], int(findings.class_boxes[c])) for c in order]
    return findings.phrases.most_common()


def facts(findings):
    """[(title, text)] lines about a source, for the terminal and the page."""
    numbers = [("records read", f"{findings.records:,}" + (f", {findings.captions:,} with a caption" * bool(findings.captions))),
               ("boxes", f"{sum(findings.box_sizes.values()):,}: "
                + ", ".join(f"{findings.box_sizes[size]:,} {size}" for size in ("small", "medium", "large"))
                + " (areas below 32², 96² pixels and above)")]
    for title, counter in (("boxes of a record", findings.boxes), ("prompt, tokens", findings.tokens)):
        if counter:
            numbers.append((title, _spread(counter)))
    if findings.all_classes_tokens is not None:
        numbers.append(("all classes in one prompt", f"{findings.all_classes_tokens} tokens for {len(findings.class_names)} names"))
    if findings.cut_classes:
        some = ", ".join(f"{findings.class_names[c]} {n}" for c, n in findings.cut_classes.most_common(_EXAMPLES))
        numbers.append(("classes cut from prompts", f"{len(findings.cut_classes)}, in images: {some}"))
    if findings.sides:
        heights, widths = ({}, {})
        for (height, width), count in findings.sides.items():
            heights[height] = heights.get(height, 0) + count
            widths[width] = widths.get(width, 0) + count
        numbers += [("image heights", _spread(heights)), ("image widths", _spread(widths))]
    return numbers


def _spread(counter):
    least, quarter, half, three, most, last = quantiles(counter)
    return f"median {half}, half of them {quarter}–{three}, 95 % ≤ {most}, all {least}–{last}"


def rare(findings):
    """[(class name or phrase, boxes)] of the least frequent, at most ten; classes with fewer than ten boxes."""
    if findings.class_names:
        found = [(word, count) for word, count in words(findings) if count < _RARE_BOXES]
        return sorted(found, key=lambda entry: entry[1])[:_RARE]
    return words(findings)[-_RARE:] if len(findings.phrases) > _TOP + _RARE else []


def print_summary(all_findings, leaks, console=None):
    """Prints everything on the terminal."""
    console = console or Console(soft_wrap=True, highlight=False)
    for findings in all_findings:
        console.print(f"\n[bold]{escape(findings.name)}[/]")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for title, text in facts(findings):
            table.add_row(f"[dim]{title}[/]", text)
        console.print(table)
        _print_words(console, findings)
        _print_list(console, findings.problems, {k: n for k, n in findings.notes.items() if n})
    for leak in leaks:
        said = ", ".join(f"{leak[key]} by {name}" for key, name in (("ids", "id"), ("files", "file name"), ("pixels", "pixels"))
                         if leak[key] is not None)
        console.print(f"\n[bold]images of {escape(leak['name'])} in {escape(leak['against'])}[/]: {said}")
        _print_list(console, leak["problems"], dict.fromkeys(leak["notes"], 1))


def _print_words(console, findings):
    top = words(findings)[:_TOP]
    if not top:
        return
    kind = "class" if findings.class_names else "phrase"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(kind)
    table.add_column("boxes", justify="right")
    table.add_column("")
    for word, count in top:
        table.add_row(escape(word), f"{count:,}", "█" * round(32 * count / max(top[0][1], 1)))
    console.print(table)
    if rest := len(words(findings)) - len(top):
        console.print(f"  and {rest:,} more; all are in report.json", style="dim")
    if found := rare(findings):
        console.print(f"  rare: {escape(', '.join(f'{word} {count}' for word, count in found))}", style="dim")


def _print_list(console, problems, notes):
    for text, count in sorted(notes.items(), key=lambda note: -note[1]):
        console.print(f"  [yellow]note[/] {f'{count:,} × ' * (count > 1)}{escape(text)}")
    for count, examples in folded(problems):
        console.print(f"  [red]bad[/]  {count:,} of this kind" if count > 1 else "  [red]bad[/]  1 of this kind")
        for example in examples:
            console.print(f"       {escape(example)}")
        if count > len(examples):
            console.print(f"       and {count - len(examples):,} more", style="dim")


def report(findings):
    """dict for report.json: every problem, every class, and the thousand most frequent phrases."""
    spreads = {"boxes_per_record": findings.boxes, "prompt_tokens": findings.tokens}
    return {
        "name": findings.name, "records": findings.records, "captions": findings.captions,
        "problems": findings.problems, "notes": {text: n for text, n in findings.notes.items() if n},
        "classes": [{"name": name, "boxes": int(boxes), "images": int(images), "cut_from_prompts": findings.cut_classes[c]}
                    for c, (name, boxes, images) in enumerate(
                        zip(findings.class_names, findings.class_boxes, findings.class_images))],
        "phrases": dict(findings.phrases.most_common(1000)), "different_phrases": len(findings.phrases),
        "box_sizes": dict(findings.box_sizes), "tokens_of_all_classes": findings.all_classes_tokens,
        "quantiles": [f"{q:.0%}" for q in QUANTILES],
        **{key: quantiles(counter) for key, counter in spreads.items()},
    }
