"""What a plan reads off a compiled program, and the true step on TPUs that are not there."""
import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import glipv2_t_stage1
from glipv2_jax import hlo, plan, sharding
from glipv2_jax.absent_devices import absent_devices
from glipv2_jax.losses.contrastive import inter_image_loss

PLAN = plan.Plan("configs/x.py", "train", "glipv2_t", "v5e:4x4", "v5e", 16, {"data": 16, "fsdp": 1, "tensor": 1}, 64, (800, 1344), "nothing",
                 ["deform_conv", "deform_conv_gradients"], int(1e9), int(2e9), int(1e6), int(5e9), int(1e8), 3e12, 6e9,
                 {"fusion": 4e9, "heads": 2e9}, 1e6, 1e6, {"all-reduce": [3, int(1e9)]}, 60.0, {})


def test_memory_and_floor_of_a_plan():
    assert PLAN.total == 8.101e9 and PLAN.spare == 16e9 - 8.101e9
    assert PLAN.seconds() == pytest.approx({"products": 3e12 / 197e12, "memory": 6e9 / 819e9, "rows": 30.5e6 / 1.5e9, "collectives": 1 / 200})
    assert PLAN.step_seconds() == pytest.approx(3e12 / 197e12 + 30.5e6 / 1.5e9)
    assert PLAN.images_per_second() == pytest.approx(64 / PLAN.step_seconds())


def test_a_plan_says_whether_it_fits_and_what_it_costs(capsys):
    plan.print_plan(PLAN, hourly_rate=1.2, epoch_images=2_000_000)
    said = capsys.readouterr().out
    for part in ("fusion 67 %, heads 33 %", "fits", "7.90 GB left", "deform_conv, deform_conv_gradients", "2 M images", "at 1.2 a chip and hour"):
        assert part in said
    plan.print_plan(dataclasses.replace(PLAN, temporaries=int(20e9)))
    assert "DOES NOT FIT" in capsys.readouterr().out
    for temporaries, fits, told in ((50e9, True, False), (65e9, True, True), (74e9, False, False)):       # and 3 GB of state; 76 can be had
        plan.print_plan(dataclasses.replace(PLAN, chip="h100", topology="h100:8", temporaries=int(temporaries)))
        said = capsys.readouterr().out
        assert (" fits " in said, "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in said) == (fits, told)


def test_numbers_out_of_their_range_are_told_before_devices_are_asked_for():
    config = glipv2_t_stage1.get_config("rehearsal")
    config.train.accumulation_steps, config.train.batch_size = 0, -3
    with pytest.raises(ValueError, match="train.batch_size: found -3, expected at least 1; train.accumulation_steps: found 0"):
        plan.run(config, "nowhere", "configs/x.py")


def test_the_search_fills_the_memory_and_puts_the_fastest_that_fits_first(monkeypatch, capsys, tmp_path):
    """With a made-up compiler: an image takes 3 GB, or 1.2 GB where its layers are computed again, which costs a third more work."""
    tried = []

    def compiled(config, devices, topology, name):
        images, again = config.train.batch_size // len(devices), config.model.overrides.remat == "nothing"
        sharded = config.mesh.fsdp > 1
        tried.append((config.mesh.fsdp, config.model.overrides.remat, images))
        return dataclasses.replace(
            PLAN, topology=topology, devices=len(devices), mesh={"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": 1},
            batch_size=config.train.batch_size, remat=config.model.overrides.remat, temporaries=int(images * (1.2e9 if again else 3e9)),
            parameters=int(1e9) // (16 if sharded else 1), optimizer=int(2e9) // (16 if sharded else 1),
            flops=images * 4e12 * (4 / 3 if again else 1), bytes_moved=0, traffic={}, gathered_rows=0, scattered_rows=0,
            collectives={"all-gather": [10, int(20e9 if sharded else 1e9)]})
    monkeypatch.setattr(plan, "compile_train", compiled)
    monkeypatch.setattr(plan, "absent_devices", lambda topology: [None] * 16)
    found = plan.run(glipv2_t_stage1.get_config(), "v5e:4x4", "configs/x.py", searching=True, output=tmp_path / "plans.json")
    best = found[0]
    assert (best.mesh["fsdp"], best.remat, best.batch_size // 16) == (1, "dots_with_no_batch_dims_saveable", 4) and best.spare > 0
    assert len(found) == len(tried) == len(set(tried)) and {(1, "nothing", 8), (16, "nothing", 8), (16, "nothing", 1)} <= set(tried)
    assert [p.spare < 0 for p in found] == sorted(p.spare < 0 for p in found)
    said = capsys.readouterr().out
    assert "compiled, the best first" in said and said.count("of a device") == 1


@pytest.mark.parametrize("origin, part", [
    ("jit(train_step)/jvp(GLIPv2)/GLIPv2.predict/while/body/closed_call/checkpoint/DyConv/vmap()/while", "deformable convolutions"),
    ("jit(train_step)/transpose(jvp(GLIPv2))/GLIPv2.predict/dyconv_1/offset/conv", "deformable convolutions"),
    ("jit(train_step)/jvp(GLIPv2)/GLIPv2.encode_text/text_encoder/while/body/closed_call/BertLayer/query", "text encoder"),
    ("jit(train_step)/jvp(GLIPv2)/GLIPv2.predict/text_layer_0/query", "text layers of the tower"),
    ("jit(train_step)/jvp(GLIPv2)/GLIPv2.predict/while/body/Fusion/mul", "fusion"),
    ("jit(train_step)/jvp(GLIPv2)/GLIPv2.encode_image/fpn/lateral4/conv", "pyramid"),
    ("jit(train_step)/jvp(GLIPv2)/GLIPv2.predict/mlm/decoder/dot", "heads"),
    ("jit(train_step)/cond/branch_1_fun/add", "losses, targets, optimizer"), ("", "copies that the compiler adds")])
def test_parts_of_a_step(origin, part):
    assert plan.part_of(origin) == part


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_the_small_step_for_four_chips(compiler, tmp_path):
    """Images stay where they are: gradients are summed, nothing is handed from chip to chip."""
    config = glipv2_t_stage1.get_config("rehearsal")
    found, forward = plan.run(config, "v5e:2x2", "configs/x.py", inference=True, output=tmp_path / "plan.json")
    assert found.batch_size == 8 and found.devices == 4 and found.spare > 0 and forward.program == "inference"
    assert found.kernels == ["window_attention", "window_attention_gradients"]          # its 64 channels are too few for the others
    assert "all-to-all" not in found.collectives and found.collectives["all-reduce"][1] < 1.2 * found.parameters
    # A nano's loops are short, and most of its arrays stay on the chip; all of a step's parts are there.
    assert found.bytes_moved == sum(found.traffic.values()) > 2 * found.parameters
    assert {"image encoder", "text encoder", "fusion", "deformable convolutions", "heads", "losses, targets, optimizer"} <= set(found.traffic)
    assert [entry["program"] for entry in json.loads((tmp_path / "plan.json").read_text())] == ["train", "inference"]
    config.mesh.data, config.mesh.fsdp = 1, 4
    sharded, = plan.run(config, "v5e:2x2", "configs/x.py")
    assert sharded.parameters < 0.4 * found.parameters and sharded.optimizer < 0.4 * found.optimizer
    assert "all-to-all" not in sharded.collectives


@pytest.mark.slow
@pytest.mark.gpu_compiler
def test_the_small_step_for_two_gpus(gpu_compiler, tmp_path):
    """As somebody without a GPU would plan for two, in a process whose JAX has not looked for one."""
    subprocess.run([sys.executable, "-m", "glipv2_jax.main", "--mode=plan", "--config=configs/glipv2_t_stage1.py:rehearsal", "--topology=h100:2",
                    f"--output={tmp_path / 'plan.json'}"], check=True)
    entry, = json.loads((tmp_path / "plan.json").read_text())
    found = plan.Plan(**entry)
    assert (found.chip, found.devices, found.batch_size, found.kernels) == ("h100", 2, 8, []) and found.spare > 79e9
    # Gradients are summed; what the inter-image loss gathers is small.
    assert found.collectives.pop("all-reduce")[1] < 1.2 * found.parameters
    assert "all-to-all" not in found.collectives and sum(size for _, size in found.collectives.values()) < 0.1 * found.parameters
    assert {"image encoder", "text encoder", "fusion", "deformable convolutions", "heads", "losses, targets, optimizer"} <= set(found.traffic)
    # Every parameter, moment and average is read and written.
    assert found.bytes_moved > 2 * (found.parameters + found.optimizer)


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_the_inter_image_loss_gathers_a_large_batch_once(compiler):
    """Regions and words of 1024 images travel to each of 256 chips once, not in every step of the loops over them."""
    regions, tokens, width, boxes = 100, 256, 64, 100
    shapes = [((1024, regions, width), jnp.float32), ((1024, tokens, width), jnp.float32), ((1024, regions), bool),
              ((1024, regions), jnp.int32), ((1024, boxes, tokens), bool), ((1024, tokens), bool), ((1024, boxes), jnp.int32),
              ((1024, tokens), jnp.int32)]
    mesh = sharding.make_mesh(devices=absent_devices("v5e:16x16"))
    batch = [jax.ShapeDtypeStruct(*shape, sharding=sharding.batch_sharding(mesh)) for shape in shapes]

    def loss(image, text, *rest):
        total, count = inter_image_loss(image, text, -2.66, *rest)
        return total / count
    with sharding.use(mesh, ()):
        text = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*batch).compile().as_text()
    number, size = hlo.Program(text).collectives()["all-gather"]
    assert number <= 8 and size <= 2 * 1024 * (regions + tokens) * width * 4


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_glipv2_t_for_sixteen_chips(compiler):
    """The full size: four images on a chip, gradients summed once, nothing handed from chip to chip."""
    found, = plan.run(glipv2_t_stage1.get_config(), "v5e:4x4", "configs/glipv2_t_stage1.py")
    assert found.batch_size == 64 and found.spare > 0 and found.temporaries < 7e9 and found.bytes_moved < 120e9
    assert found.kernels == [f"{name}{part}" for name in ("bidirectional_attention", "deform_conv", "window_attention")
                             for part in ("", "_gradients")]
    assert found.collectives.get("all-to-all", [0])[0] == 0 and found.collectives["all-reduce"][1] < 1.2 * found.parameters
