"""Products that accumulate in float32, whatever the operands are."""
import jax
import jax.numpy as jnp


def einsum_float32(equation, *operands):
    """jnp.einsum with a float32 result.

    Half-precision operands stay so where the hardware multiplies them. XLA's CPU backend cannot multiply bfloat16 into
    float32, so there, and only there, they are widened first; the choice is made for the platform that is compiled for.
    """
    def native(*operands):
        return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)
    if all(x.dtype == jnp.float32 for x in operands):
        return native(*operands)
    return jax.lax.platform_dependent(
        *operands, cpu=lambda *operands: native(*(x.astype(jnp.float32) for x in operands)), default=native)


def kernel_dot(a, b, contracted=((1,), (0,))):
    """Product of two matrices inside of a kernel of our own, float32: [M, K], [K, N] → [M, N], or over other axes of each.

    One bfloat16 pass over float32 operands would round them first; half-precision operands are multiplied as they are.
    """
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32, precision=precision)
