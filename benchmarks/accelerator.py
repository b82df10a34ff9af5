"""Checks and times everything on a GPU or TPU in one call, for whoever has one.

    python -m benchmarks.accelerator --output=runs/accelerator

First what is right: the tests of the reference's tensors and detections, of deformable convolution, fusion, NMS, RoIAlign, targets and
losses, on the device. Computation is float32 with all products in full float32 (`jax_default_matmul_precision` "highest"), so that the
tolerances are those of the CPU: 5 to 10 times the float32 noise that the reference measured. How far bfloat16 drifts from float32 stands
beside it. Then what is fast: forms of single operations, forward pass by parts, training step, on a GPU also with flags of XLA, detection,
captions. Each is a command of its own with a time limit, so that one that fails does not end the rest; none needs TensorFlow, or torch but
for the peers. DIR gets report.md and report.json, rewritten after every command, and what the commands write.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

from rich.console import Console

from benchmarks.device import describe, facts, in_own_process
from glipv2_jax.files import write_whole
from glipv2_jax.models.config import VARIANTS

ROOT = pathlib.Path(__file__).parent.parent
# Tests that compare with stored numbers, numpy or a plain form, and read nothing through TensorFlow.
TESTS = ("nms", "deform_conv", "deform_conv_tpu", "bidirectional_attention", "roi_align", "box_coder", "anchors", "atss", "postprocess",
         "losses_grounding", "losses_localization", "losses_mlm", "losses_contrastive", "reference_parts", "reference_masks",
         "reference_models", "reference_train", "models")


# On a GPU: products by cuBLAS alone; no CUDA graphs; graphs of loops, too; collectives and copies ahead of their use.
GPU_FLAGS = ("--xla_gpu_enable_triton_gemm=false", "--xla_gpu_enable_command_buffer=", "--xla_gpu_enable_command_buffer=+WHILE",
             "--xla_gpu_enable_latency_hiding_scheduler=true")


def commands(args, output, backend):
    """dict of name → arguments of python, in their order. backend: "gpu", "tpu" or "cpu"; flags of XLA are those of a GPU."""
    size, dtype = args.size, ("--dtype=bfloat16",)
    tests = [f"tests/test_{name}.py" for name in TESTS]
    return {
        "correctness": ("-m", "pytest", "-q", "--accelerator", *["--slow"] * args.slow, "-p", "no:cacheprovider",
                        f"--junitxml={output / 'tests.xml'}", *tests),
        "bfloat16": ("-m", "benchmarks.bfloat16_drift", "--cases=tiny"),
        "kernels": ("-m", "benchmarks.kernels", "--sizes=100x168,50x84,25x42,13x21,7x11", "--images=4", *dtype,
                    f"--json={output / 'kernels.json'}"),
        "forward": ("-m", "benchmarks.forward", f"--variant={args.variant}", f"--sizes={size}", "--repeats=20", *dtype),
        "forward_batch": ("-m", "benchmarks.forward", f"--variant={args.variant}", f"--sizes={size}", "--repeats=10", "--batch=8", *dtype),
        "train": ("-m", "benchmarks.train", f"--variant={args.variant}", f"--size={size}", f"--batches={args.batches}", "--scan_layers", "--peer",
                  "--remat=none,nothing,dots_with_no_batch_dims_saveable", f"--output={output / 'train.json'}", *dtype),
    } | ({
        "flags": ("-m", "benchmarks.train", f"--variant={args.variant}", f"--size={size}", "--batches=4", "--scan_layers", "--remat=nothing",
                  *(f"--flags={flags}" for flags in GPU_FLAGS), f"--output={output / 'flags.json'}", *dtype),
    } if backend == "gpu" else {}) | {
        "detect": ("-m", "benchmarks.detect", f"--variant={args.variant}", f"--sizes={size}", "--batches=1,4", "--classes=1,80",
                   "--repeats=5", "--device=accelerator"),
        "describe": ("-m", "benchmarks.describe", f"--variant={args.variant}", f"--size={size}", *dtype),
    }


def run(arguments, limit_s):
    """A python command in a process of its own: dict of command, ok, code, seconds, and what it printed."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=os.environ | {"COLUMNS": "160"}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)
    try:
        said, code = process.communicate(timeout=limit_s)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)             # with its own processes, which may hold the device
        said, code = process.communicate()[0], f"stopped after {limit_s} s"
    return {"command": " ".join(("python", *arguments)), "ok": code == 0, "code": code, "seconds": time.perf_counter() - started,
            "output": said.decode(errors="replace")}


def counts_of(path):
    """dict of passed, failed, skipped, and the names of those that failed, from pytest's JUnit file; {} without one."""
    if not path.exists():
        return {}
    kinds, failed = {"passed": 0, "failed": 0, "skipped": 0}, []
    for case in xml.etree.ElementTree.parse(path).getroot().iter("testcase"):
        outcome = {child.tag for child in case}
        kind = "failed" if outcome & {"failure", "error"} else "skipped" if "skipped" in outcome else "passed"
        kinds[kind] += 1
        if kind == "failed":
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return kinds | {"names_of_failed": failed}


def markdown(about, results):
    """The report."""
    lines = ["# glipv2_jax on an accelerator", "", describe(about), "", "| command | result | seconds |", "| --- | --- | --- |"]
    for name, found in results.items():
        counts = found.get("tests")
        verdict = "ok" if found["ok"] else f"FAILED ({found['code']})"
        if counts:
            verdict += f", {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
        lines.append(f"| {name} | {verdict} | {found['seconds']:.0f} |")
    for name, found in results.items():
        said = found["output"].strip().splitlines()
        lines += ["", f"## {name}", "", f"`{found['command']}`", "", "```", *(said if found["ok"] else said[-60:]), "```"]
    return "\n".join(lines) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", required=True, help="folder of the report")
    parser.add_argument("--variant", default="glipv2_t", choices=sorted(name for name, c in VARIANTS.items() if c.mlm_head))
    parser.add_argument("--size", default="800x1344", help="height x width")
    parser.add_argument("--batches", default="1,2,4,8", help="of training: images on each device")
    parser.add_argument("--slow", action="store_true", help="full-size cases among the tests, too")
    parser.add_argument("--only", default="", help="commands with commas, of those in the report; empty: all")
    parser.add_argument("--limit_s", type=int, default=1800, help="seconds that a command may take")
    args = parser.parse_args(arguments)
    output, console = pathlib.Path(args.output).absolute(), Console()
    about, results = in_own_process(facts), {}
    chosen = commands(args, output, about["backend"])
    if unknown := set(filter(None, args.only.split(","))) - set(chosen):
        parser.error(f"--only: found {', '.join(sorted(unknown))}, expected some of {', '.join(chosen)}")
    output.mkdir(parents=True, exist_ok=True)
    console.print(describe(about), markup=False)
    for name, command in chosen.items():
        if args.only and name not in args.only.split(","):
            continue
        with console.status(name):
            results[name] = run(command, args.limit_s)
        if name == "correctness":
            results[name]["tests"] = counts_of(output / "tests.xml")
        console.print(f"{name}: {'ok' if results[name]['ok'] else 'FAILED'} in {results[name]['seconds']:.0f} s", markup=False)
        write_whole(output / "report.json", json.dumps({"protocol": __doc__, **about, "results": results}, indent=1) + "\n")
        write_whole(output / "report.md", markdown(about, results))
    if not all(found["ok"] for found in results.values()):
        raise SystemExit(f"some commands failed: see {output / 'report.md'}")


if __name__ == "__main__":
    main()
