"""An operation in several forms, XLA's operations, those arranged for GPUs, and a kernel of our own for TPUs: which one runs is decided
here and nowhere else."""
import functools

import jax

FORMS = ("auto", "xla", "gpu", "kernel")


def check_form(name, form):
    """Raises: ValueError for a form that is none."""
    if form not in FORMS:
        raise ValueError(f"{name}: found {form!r}, expected one of {FORMS}")


def in_form(form, supported, plain, kernel, *args, on_gpus=None):
    """Runs one of several functions that compute the same, chosen for the platform that a program is compiled for.

    Args:
      form: "xla": `plain`; "gpu": `on_gpus`; "kernel": `kernel`; "auto": `kernel` when compiled for TPUs and `supported`, `on_gpus` when
        compiled for GPUs, else `plain`.
      supported: whether the kernel takes these sizes on a TPU.
      plain: function of `args`. kernel: function of `args` and of `interpret`, which is True where it is asked for and cannot run.
      on_gpus: function of `args`, XLA's operations arranged for a GPU, or None: as `plain`.
    """
    if form == "xla" or form == "gpu" and on_gpus is None:
        return plain(*args)
    if form == "gpu":
        return on_gpus(*args)
    if form == "kernel":
        interpreted = functools.partial(kernel, interpret=True)
        return jax.lax.platform_dependent(*args, tpu=kernel if supported else interpreted, default=interpreted)
    chosen = ({"tpu": kernel} if supported else {}) | ({"cuda": on_gpus, "rocm": on_gpus} if on_gpus else {})
    return jax.lax.platform_dependent(*args, **chosen, default=plain) if chosen else plain(*args)
