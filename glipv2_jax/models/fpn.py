"""Feature pyramid P3–P7. Source: GLIP backbone/fpn.py."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models.layers import Conv
from glipv2_jax.models.regularization import drop_block

# Kaiming-uniform with a = 1, as the reference initialises every convolution of the pyramid.
KAIMING = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """Call: C3, C4, C5 (strides 8, 16, 32) → list of five maps P3 … P7 [B, H/s, W/s, C], s = 8 … 128."""
    channels: int
    drop_block: float = 0.3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train=False):
        def conv(name, size, stride=1):
            pad = size // 2
            return Conv(self.channels, (size, size), (stride, stride), ((pad, pad), (pad, pad)),
                        dtype=self.dtype, kernel_init=KAIMING, name=name)
        top = conv("lateral5", 1)(features[2])
        outputs = [conv("output5", 3)(top)]
        for level in (4, 3):
            lateral = conv(f"lateral{level}", 1)(features[level - 3])
            top = lateral + upsample_nearest(top, lateral.shape[1:3])
            # DropBlock acts on what is put out, never on the top-down path.
            outputs.insert(0, conv(f"output{level}", 3)(self._drop_block(top, train)))
        p6 = conv("p6", 3, stride=2)(outputs[-1])
        p7 = conv("p7", 3, stride=2)(nn.relu(p6))
        return [*outputs, p6, p7]

    def _drop_block(self, x, train):
        if not train or self.drop_block == 0.0:
            return x
        return drop_block(x, jax.random.uniform(self.make_rng("dropout"), x.shape[:3]), self.drop_block, size=3)


def upsample_nearest(x, size):
    """[B, h, w, C] → [B, H, W, C] with source index ⌊dst·in/out⌋."""
    for axis, out in ((1, size[0]), (2, size[1])):
        x = jnp.take(x, np.arange(out) * x.shape[axis] // out, axis=axis)
    return x
