"""An operation in two forms, XLA's operations and a kernel of our own for TPUs: which one runs is decided here and nowhere else."""
import functools

import jax

FORMS = ("auto", "xla", "kernel")


def check_form(name, form):
    """Raises: ValueError for a form that is none."""
    if form not in FORMS:
        raise ValueError(f"{name}: found {form!r}, expected one of {FORMS}")


def in_form(form, supported, plain, kernel, *args):
    """Runs one of two functions that compute the same, chosen for the platform that a program is compiled for.

    Args:
      form: "xla": `plain`; "kernel": `kernel`; "auto": `kernel` when compiled for TPUs and `supported`, else `plain`.
      supported: whether the kernel takes these sizes on a TPU.
      plain: function of `args`. kernel: function of `args` and of `interpret`, which is True where it is asked for and cannot run.
    """
    if form == "xla" or form == "auto" and not supported:
        return plain(*args)
    interpreted = functools.partial(kernel, interpret=True)
    return jax.lax.platform_dependent(*args, tpu=kernel if supported else interpreted, default=plain if form == "auto" else interpreted)
