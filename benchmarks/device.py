"""What was measured on, and measurements that leave nothing behind on the device."""
import concurrent.futures
import importlib.metadata
import multiprocessing
import os
import platform
import time

NO_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")       # as XLA, torch and the machine say it
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers")


def facts():
    """dict of device, devices, backend, host, versions and date. Starts JAX on the devices."""
    import jax
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "backend": jax.default_backend(),
            "host": f"{os.cpu_count()} cores, {platform.machine()}", "versions": versions, "date": time.strftime("%Y-%m-%d")}


def describe(facts):
    """The facts as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    return f"{facts['devices']} × {facts['device']} ({facts['backend']}), {facts['host']}, {facts['date']}; {versions}"


def in_own_process(function, *args):
    """What a function of a module returns in a fresh process.

    A device's peak of memory is that of its process, some memory is taken for good, and two frameworks do not share a device:
    so each measurement has a process of its own. The caller must not have started JAX on an accelerator itself.

    Args:
      function: returns a dict; it and its arguments are pickled.
    Returns: that dict, or {"failed": reason} where memory did not suffice or the process was killed.
    Raises: whatever else the function raises.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_fits, function, *args).result()
        except concurrent.futures.process.BrokenProcessPool:
            return {"failed": "the process was killed, as a machine does that has no memory left"}


def _fits(function, *args):
    try:
        return function(*args)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            return {"failed": f"does not fit: {str(error).splitlines()[0][:200] if str(error) else 'out of memory'}"}
        raise
