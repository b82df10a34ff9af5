"""What a conversion did, for a person: tables of what was filled, left out, left fresh; a check of names."""
import json
import pathlib
import re

import numpy as np
from rich.console import Console
from rich.table import Table

from glipv2_jax.convert import names


def print_report(conversion, config, reference=None, console=None):
    """Prints tables of a Conversion.

    Args:
      conversion: Conversion. config: its ModelConfig.
      reference: folder with manifest_*.json of the reference's models, or None.
      console: rich Console, for tests.
    """
    console = console or Console(soft_wrap=True)
    for source in conversion.sources:
        console.print(f"{source['file']}: {source['kind']}, {source['format']}, {source['bytes'] / 1e6:.1f} "
                      f"MB, sha256 {source['sha256']}", highlight=False)
    _print_groups("filled from the files", conversion.filled, conversion, console)
    _print_groups("fresh: no file has them, training has to", conversion.fresh, conversion, console)
    for title, lines in (("recognised and not needed", conversion.unused),
                         ("beside the weights", conversion.entries)):
        if lines:
            table = Table("name", "what it is", title=title, title_justify="left")
            for name, why in lines.items():
                table.add_row(name, why)
            console.print(table)
    if conversion.buffers:
        console.print(f"{len(conversion.buffers)} buffers are recomputed, {conversion.buffers[0]} and others",
                      highlight=False)
    for line in check_names(conversion, config, reference):
        console.print(line, highlight=False)


def summary(conversion):
    """One line."""
    counts = conversion.manifest("", {})["counts"]
    millions = {part: f"{counts[part] / 1e6:.1f} M parameters" for part in ("parameters", "fresh_parameters")}
    parts = [f"{counts['keys_placed']} weights fill {counts['tensors']} tensors, {millions['parameters']}"]
    if conversion.fresh:
        groups = sorted({_group(path) for path in conversion.fresh})
        parts.append(f"{millions['fresh_parameters']} start fresh: {', '.join(groups)}")
    if conversion.unused or conversion.entries:
        parts.append(f"not needed: {', '.join([*conversion.unused, *conversion.entries])}")
    if conversion.averaged:
        parts.append("averaged parameters are there, too")
    return "; ".join(parts)


def check_names(conversion, config, reference=None):
    """Checks the converted names as the fixtures of the reference describe them.

    Every parameter must have a reference key that leads back to it. With a folder of manifests, the keys and
    shapes of the whole model are compared with those that the reference's own code built.

    Returns: list of lines to print.
    """
    keys = {}
    for path, shape in conversion.shapes.items():
        for key, kind in names.keys_of(path, config.fusion, config.text_encoder.kind):
            back = names.parameter_of(key.format(element=0), config.fusion)
            assert back[:2] == (path, kind), f"{path} → {key} → {back}"
            one = names.to_reference(np.broadcast_to(np.float32(0), shape), kind)
            keys |= ({key.format(element=i): (1,) for i in range(*shape)} if kind == "element" else
                     {key: one.shape})
    lines = [f"{len(conversion.shapes)} parameters have {len(keys)} reference names that lead back to them"]
    manifests = sorted(pathlib.Path(reference).glob("manifest_*.json")) if reference else []
    best = None
    for path in manifests:
        manifest = {key.removeprefix("module."): tuple(about["shape"])
                    for key, about in json.loads(path.read_text()).items() if about["weight"]}
        wrong = sorted(key for key in manifest.keys() | keys.keys() if manifest.get(key) != keys.get(key))
        if best is None or len(wrong) < len(best[1]):
            best = path, wrong, manifest
    if best:
        path, wrong, manifest = best
        lines.append(f"{path.name}: all {len(manifest)} names and shapes equal" if not wrong else
                     f"{path.name} is the nearest model of the reference; {len(wrong)} names or shapes "
                     "differ: "
                     + ", ".join(f"{key} {manifest.get(key, 'none there')}, here {keys.get(key, 'none')}"
                                 for key in wrong[:5]))
    else:
        lines.append("no manifests of the reference to compare with: name their folder in GLIPV2_REFERENCE")
    return lines


def _print_groups(title, paths, conversion, console):
    if not paths:
        return
    groups = {}
    for path in sorted(paths, key=_group):
        groups.setdefault(_group(path), []).append(path)
    table = Table("part", "tensors", "parameters", "for example", title=title, title_justify="left")
    for group, members in groups.items():
        largest = max(members, key=lambda path: np.prod(conversion.shapes[path], dtype=np.int64))
        parameters = sum(int(np.prod(conversion.shapes[path])) for path in members)
        table.add_row(group, str(len(members)), f"{parameters:,}",
                      f"{largest} {conversion.shapes[largest]}")
    console.print(table)


def _group(path):
    """Part of the model: "fusion_0/key_kernel" → "fusion"."""
    return re.sub(r"_\d+$", "", path.split("/")[0])
