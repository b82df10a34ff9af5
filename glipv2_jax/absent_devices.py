"""Devices that are not there, to compile for: slices of TPUs through libtpu, GPUs of one host through JAX's CUDA plugin.

Both compilers run on any Linux machine; neither a TPU nor a driver is needed.
"""
import os
import re

import jax

from glipv2_jax.flops import CHIPS

TPUS = ("v5e", "v5p", "v6e")
# What XLA asks of an NVIDIA GPU. Source: openxla/xla, backends/gpu/target_config/specs.
GPUS = {
    "a100": {"name": "NVIDIA A100-SXM4-80GB", "capability": "major: 8", "cores": 108, "units": 64, "clock": 1.41, "cache": 41943040,
             "shared_memory": 167936},
    "h100": {"name": "NVIDIA H100 80GB HBM3", "capability": "major: 9 feature_extension: ACCELERATED_FEATURES", "cores": 132, "units": 128,
             "clock": 1.98, "cache": 52428800, "shared_memory": 233472},
    "h200": {"name": "NVIDIA H200 141GB HBM3e", "capability": "major: 9 feature_extension: ACCELERATED_FEATURES", "cores": 132, "units": 128,
             "clock": 1.98, "cache": 52428800, "shared_memory": 233472},
}
# Triton's tiles for a product are found by trying them on the device; cuBLAS, which takes the others there too, needs none.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
EXPECTED = ("chips and their shape such as v5e:4x4, v5p:2x2x4 or v6e:16x16, "
            f"or GPUs of one host, 1 to 8 of {', '.join(GPUS)}, such as h100:8")


def absent_devices(topology):
    """List of the devices of "v5e:4x4", "v5p:2x2x4", "v6e:16x16"; "a100:1", "h100:8", "h200:4".

    Raises: ValueError without the compiler, or for a topology that it does not know.
    """
    if re.fullmatch(rf"({'|'.join(TPUS)}):[1-9]\d*(x[1-9]\d*)+", topology):
        return _tpus(topology)
    if match := re.fullmatch(rf"({'|'.join(GPUS)}):([1-8])", topology):
        return _gpus(match[1], int(match[2]))
    raise ValueError(f"--topology: found {topology!r}, expected {EXPECTED}")


def _tpus(topology):
    # What the compiler would ask a TPU machine about.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ValueError("glipv2 plan needs the TPU compiler, which runs on any Linux machine: pip install 'glipv2_jax[plan]'") from None
    from jax.experimental import topologies
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"--topology: found {topology!r}, expected {EXPECTED} ({str(error).splitlines()[0]})") from None


def _gpus(kind, number):
    # The plugin looks for a driver and libraries of CUDA, of which compiling needs none.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax.experimental import topologies
    try:
        return list(topologies.get_topology_desc(kind, "cuda", target_config=_target(kind), topology=f"1x1x{number}").devices)
    except NotImplementedError:
        raise ValueError("glipv2 plan needs JAX's CUDA plugin to compile for GPUs, on any Linux machine and without a driver: "
                         "pip install 'glipv2_jax[plan-gpu]'") from None
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"--topology: found {kind}:{number}, which this version of JAX's CUDA plugin cannot compile for: "
                         f"{str(error).splitlines()[0]}") from error


def _target(kind):
    """XLA's description of a GPU, a GpuTargetConfigProto as text."""
    gpu, chip = GPUS[kind], CHIPS[kind]
    values = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49152, "shared_memory_per_core": gpu["shared_memory"],
        "shared_memory_per_block_optin": gpu["shared_memory"] - 1024,
        "core_count": gpu["cores"], "fpus_per_core": gpu["units"], "clock_rate_ghz": gpu["clock"], "l2_cache_size": gpu["cache"],
        "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
        "memory_bandwidth": int(chip.bandwidth), "device_memory_size": int(chip.memory),
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in values.items())
    return (f'gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ {gpu["capability"]} }}\n}}\nplatform_name: "CUDA"\n'
            f'dnn_version_info {{ major: 9 minor: 10 }}\ndevice_description_str: "{gpu["name"]}"\n')
