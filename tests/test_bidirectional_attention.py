"""Both forms of the attention between regions and words against plain softmaxes: forward, gradients, dropout, meshes, TPUs."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from glipv2_jax import flops, hlo, sharding
from glipv2_jax.absent_devices import absent_devices
from glipv2_jax.ops.bidirectional_attention import bidirectional_attention
from glipv2_jax.ops.dropout_masks import dropout_masks

CLAMP = 4.0                # small, so that some scores reach it
KEY = jax.random.key(7)


def arrays(images=2, regions=300, channels=16, heads=2, words=8, mean=0.0):
    """Regions with a common mean, scorer, score_bias, values, token_mask; sizes that neither chunk nor block divides."""
    rng = np.random.default_rng(0)
    shapes = (images, regions, channels), (images, channels, heads, words), (images, heads, words), (images, heads, words, channels)
    floats = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    floats[0], floats[1] = floats[0] + mean, floats[1] / 2
    mask = np.ones((images, words), bool)
    mask[0, 5:] = False
    return [*floats, jnp.asarray(mask)]


def plain(regions, scorer, score_bias, values, token_mask, dropout, rng):
    """The whole matrix, differentiated by JAX."""
    (b, a), (n, t) = regions.shape[:2], score_bias.shape[1:]
    scores = jnp.clip(jnp.einsum("bac,bcnt->bant", regions, scorer) + score_bias[:, None], -CLAMP, CLAMP)
    words = jax.nn.softmax(jnp.where(token_mask[:, None, None], scores, jnp.finfo(jnp.float32).min))
    weights = jax.nn.softmax(scores, axis=1)
    if dropout:
        seeds = jax.random.bits(rng, (b, 2), jnp.uint32)
        kept = [dropout_masks(*seed, jnp.int32(0), (a, n * t), dropout) for seed in seeds]
        kept_words, kept_regions = (jnp.stack(masks).reshape(b, a, n, t) for masks in zip(*kept))
        words, weights = words * kept_words, weights * kept_regions
    return (jnp.einsum("bant,bntc->bac", words, values), jnp.einsum("bant,bac->bcnt", weights, regions), weights.sum(1))


@functools.partial(jax.jit, static_argnames=("form", "dropout", "dtype", "chunk"))
def run(arrays, form, dropout=0.0, dtype=jnp.float32, chunk=128):
    """Results and gradients of the four arrays that have some."""
    *floats, mask = arrays

    def forward(regions, scorer, score_bias, values):
        rest = regions.astype(dtype), scorer.astype(dtype), score_bias, values.astype(dtype), mask
        if form == "plain":
            return plain(*rest, dropout, KEY)
        return bidirectional_attention(*rest, chunk=chunk, clamp=CLAMP, dropout=dropout, rng=KEY if dropout else None, form=form)
    outs, pullback = jax.vjp(forward, *floats)
    return outs, pullback(tuple(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape) for out in outs))


def errors(found, expected):
    """‖found − expected‖ / ‖expected‖ of every array."""
    return [float(np.linalg.norm(np.float32(a) - b) / np.linalg.norm(b)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected))]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("form", ["xla", "kernel"])
def test_each_form_equals_plain_softmaxes(form, dropout):
    given = arrays()
    scores = jnp.einsum("bac,bcnt->bant", *given[:2]) + given[2][:, None]
    assert 0.001 < (abs(scores) > CLAMP).mean() < 0.2
    assert max(errors(run(given, form, dropout), run(given, "plain", dropout))) < 3e-6


def test_the_kernel_equals_plain_softmaxes_in_sizes_that_a_tpu_takes():
    """On a TPU (`--accelerator`) this one is not interpreted."""
    given = arrays(channels=128, words=128)
    given[1] = given[1] / 3
    assert max(errors(run(given, "kernel", 0.3), run(given, "plain", 0.3))) < 1e-5


@pytest.mark.parametrize("form", ["xla", "kernel"])
def test_a_text_without_words_passes_no_gradient_to_the_regions_that_read_it(form):
    *floats, mask = arrays()
    given = *floats, mask.at[0].set(False)
    assert max(errors(run(given, form), run(given, "plain"))) < 3e-6


def test_chunks_do_not_matter_to_dropout():
    given = arrays()
    assert max(errors(run(given, "xla", 0.3, chunk=300), run(given, "xla", 0.3, chunk=77))) < 3e-6


def test_padding_among_the_words_is_read_by_no_region_but_reads_all():
    *floats, mask = arrays()
    (delta, context, mass), _ = run((*floats, mask), "kernel")
    changed = floats[3].at[0, :, 5:].add(100.0)
    (same, *_), _ = run((*floats[:3], changed, mask), "kernel")
    np.testing.assert_array_equal(delta, same)
    np.testing.assert_allclose(mass, 1, rtol=1e-5)
    assert abs(context[0, :, :, 5:]).min() > 0


def test_bfloat16_rounds_alike_in_both_forms():
    # What the regions have in common must cancel in the gradients of scores, however their gradients are rounded.
    for mean in (0.0, 2.0):
        given = arrays(mean=mean)
        exact = run(given, "xla")
        kernel, scan, plain = (errors(run(given, form, dtype=jnp.bfloat16), exact) for form in ("kernel", "xla", "plain"))
        for found in (kernel, scan):
            assert all(a < 3 * b + 1e-3 for a, b in zip(found, plain)), (mean, found, plain)


def test_no_layer_reads_masks_that_were_made_ahead_of_the_loop():
    """Layers in a loop, computed again, as training runs them: nothing as large as a chunk of scores goes into the loop beside the states."""
    chunk, layers, columns = 64, 3, 2 * 8
    regions, *weights, mask = arrays(regions=200)
    stacked = [jnp.stack([x] * layers) for x in weights]

    def loss(regions, stacked, keys):
        def layer(regions, given):
            key, *given = given
            delta, *rest = bidirectional_attention(regions, *given, mask, chunk=chunk, clamp=CLAMP, dropout=0.1, rng=key, form="xla")
            return regions + delta, rest
        regions, rest = jax.lax.scan(jax.checkpoint(layer), regions, (keys, *stacked))
        return regions.sum() + sum(x.sum() for x in rest)
    traced = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(regions, stacked, jax.random.split(KEY, layers))
    loops = [eqn for eqn in traced.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == layers]
    assert len(loops) >= 2                                                                # forward and back
    for loop in loops:
        shared = [var.aval for var in loop.invars[:loop.params["num_consts"]]]
        assert not [aval for aval in shared if chunk in aval.shape and aval.size >= chunk * columns], shared


def test_dropout_masks_are_unbiased_independent_and_a_function_of_place():
    rate, shape = 0.1, (512, 2048)
    masks = jax.jit(lambda a, b, first, rows: dropout_masks(a, b, first, (rows, shape[1]), rate), static_argnums=3)
    seeds = [tuple(pair) for pair in np.asarray(jax.random.bits(KEY, (3, 2), jnp.uint32))]
    kept = [np.asarray(mask) > 0 for pair in seeds for mask in masks(*pair, np.int32(0), shape[0])]
    noise = np.sqrt(rate * (1 - rate) / kept[0].size)
    for mask in kept:
        assert abs(mask.mean() - (1 - rate)) < 5 * noise
        assert abs(mask.mean(0) - (1 - rate)).max() < 6 * np.sqrt(rate * (1 - rate) / shape[0])
        assert abs(mask.mean(1) - (1 - rate)).max() < 6 * np.sqrt(rate * (1 - rate) / shape[1])
        for one, next_one in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            assert abs(np.mean(one & next_one) - (1 - rate)**2) < 6 * noise
    for i, one in enumerate(kept):
        for other in kept[:i]:
            assert abs(np.mean(one & other) - (1 - rate)**2) < 6 * noise
    below = np.asarray(masks(*seeds[0], np.int32(300), 212)[0])
    np.testing.assert_array_equal(below > 0, kept[0][300:])
    assert below.max() == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_the_form_is_chosen_by_platform():
    def lowered(words, platform, form="auto"):
        shapes = jax.eval_shape(lambda: arrays(channels=128, words=words))
        return "tpu_custom_call" in jax.jit(functools.partial(run, form=form)).trace(shapes).lower(lowering_platforms=(platform,)).as_text()
    assert lowered(128, "tpu") and not lowered(128, "cpu")
    assert not lowered(64, "tpu") and not lowered(128, "tpu", "xla")


def test_work_is_counted_alike_in_both_forms():
    shapes = jax.eval_shape(lambda: arrays(regions=512, channels=128, words=128))
    count = functools.partial(flops.count, functools.partial(run, form="auto"), shapes)
    product = 2 * 2 * 512 * 128 * 2 * 128
    assert count(platform="cpu")["flops"] == count(platform="tpu")["flops"] == 10 * product


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="bidirectional_attention: found 'scan', expected one of"):
        bidirectional_attention(*arrays(), chunk=7, clamp=CLAMP, form="scan")


@pytest.mark.slow
@pytest.mark.tpu_compiler
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_forward_and_gradients_compile_for_tpus(compiler, topology):
    """Sizes of an image of 800 × 1344 on each of four chips, with dropout: nothing moves between chips, no scores in memory."""
    devices = absent_devices(topology)
    mesh = sharding.make_mesh(devices=devices)
    dtypes = (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.bfloat16, bool)
    shapes = jax.eval_shape(lambda: arrays(len(devices), 22_400, 256, 8, 256))
    args = [jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding.batch_sharding(mesh)) for x, dtype in zip(shapes, dtypes)]

    def loss(regions, scorer, score_bias, values, token_mask):
        outs = bidirectional_attention(regions, scorer, score_bias, values, token_mask, chunk=2240, clamp=50_000.0, dropout=0.1, rng=KEY)
        return sum((out**2).sum() for out in outs)
    with sharding.use(mesh, common.get_config().mesh.rules):
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).lower(*args)
        compiled = lowered.compile()
    assert lowered.as_text().count("tpu_custom_call") == 2
    assert compiled.memory_analysis().temp_size_in_bytes < 100e6            # the matrix of scores alone would have 184 MB
    if topology.startswith("v5e"):                  # programs for the others cannot always be printed
        assert set(hlo.Program(compiled.as_text()).collectives()) <= {"all-reduce"}
