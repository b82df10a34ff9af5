"""Which devices programs are compiled for without having them, and what is said where that cannot be."""
import sys
import types

import pytest
from jax.experimental import topologies

from glipv2_jax import flops
from glipv2_jax.absent_devices import GPUS, TPUS, absent_devices


@pytest.mark.parametrize("topology", ["", "v99:4x4", "v5e", "v5e:", "v5e:0x4", "h100", "h100:0", "h100:9", "h100:2x2", "gpu:1"])
def test_unknown_topologies(topology):
    with pytest.raises(ValueError, match=f"--topology: found '{topology}', expected chips and their shape such as v5e:4x4.*or GPUs of one host"):
        absent_devices(topology)


def test_without_a_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"pip install 'glipv2_jax\[plan\]'"):
        absent_devices("v5e:2x2")

    def no_plugin(*_, **__):
        raise NotImplementedError("topology not implemented for cuda")
    monkeypatch.setattr(topologies, "get_topology_desc", no_plugin)
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")               # not left behind
    with pytest.raises(ValueError, match=r"pip install 'glipv2_jax\[plan-gpu\]'"):
        absent_devices("h100:1")


def test_a_gpu_is_described_to_the_compiler(monkeypatch):
    asked = {}

    def compiler(name, platform, **options):
        asked[name] = (platform, options)
        return types.SimpleNamespace(devices=[None] * int(options["topology"].removeprefix("1x1x")))
    monkeypatch.setattr(topologies, "get_topology_desc", compiler)
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    for kind, gpu in GPUS.items():
        assert len(absent_devices(f"{kind}:2")) == 2 and len(absent_devices(f"{kind}:8")) == 8
        platform, options = asked[kind]
        assert platform == "cuda"
        for told in (f"device_memory_size: {flops.CHIPS[kind].memory:.0f}\n", f"core_count: {gpu['cores']}\n", f"{{ {gpu['capability']} }}"):
            assert told in options["target_config"]


@pytest.mark.parametrize("topology", ["v5e:2x3", "h100:1"])
def test_what_the_compiler_refuses_is_told(monkeypatch, topology):
    def refuse(*_, **__):
        raise RuntimeError("no such thing\nmore")
    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    with pytest.raises(ValueError, match=f"--topology: found '?{topology}.*no such thing"):
        absent_devices(topology)


def test_every_kind_has_its_peaks():
    assert {*TPUS, *GPUS} == set(flops.CHIPS)
    assert [flops.chip_of(types.SimpleNamespace(device_kind=gpu["name"])) for gpu in GPUS.values()] == list(GPUS)
    others = ("NVIDIA RTX A1000 6GB Laptop GPU", "NVIDIA GH200 480GB", "NVIDIA T4")
    assert [flops.chip_of(types.SimpleNamespace(device_kind=name)) for name in others] == [None] * 3
