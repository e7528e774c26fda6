"""Building blocks, written in the form that compiles to the fastest programs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax.errors import InputError


class Linear(nnx.Linear):
    """A linear layer on every token: [..., inputs] → [..., outputs].

    On a CPU the tokens of all images are multiplied as one matrix: XLA computes [B · N, C] @ W
    faster than [B, N, C] @ W, by a quarter including the surrounding operations. On other platforms
    that reshape could cost a copy, since N is not a multiple of the tiles that tokens are stored
    in.
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Apply the kernel, and the bias if there is one; `out_sharding` as in `nnx.Linear`."""
        apply = functools.partial(super().__call__, out_sharding=out_sharding)

        def flattened(x: jax.Array) -> jax.Array:
            return apply(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

        return jax.lax.platform_dependent(inputs, cpu=flattened, default=apply)

    def apply_in_parts(self, x: jax.Array, num_parts: int) -> tuple[jax.Array, ...]:
        """Return the output in `num_parts` equal parts, each computed by a separate product."""
        if num_parts == 1:
            return (self(x),)
        kernels = jnp.split(self.kernel[...], num_parts, axis=-1)
        x, *kernels = nnx.nn.dtypes.promote_dtype((x, *kernels), dtype=self.dtype)
        products = tuple(x @ kernel for kernel in kernels)
        if self.bias is None:
            return products
        biases = jnp.split(self.bias[...], num_parts, axis=-1)
        return tuple(p + b.astype(p.dtype) for p, b in zip(products, biases, strict=True))


# "auto": the form that costs less on the platform that a program is compiled for.
PATCH_FORMS = ("auto", "product", "convolution")


class PatchEmbedding(Linear):
    """A linear layer on the pixels of each patch: [B, H, W, channels] → [B, N, width].

    It is computed by a matrix product on patches, or by a convolution whose stride is the patch's
    side, with the same kernel [side · side · channels, width]. The TPU compiler estimates half the
    cycles for the convolution, because it does not rearrange the images (docs/performance.md).
    """

    def __init__(
        self,
        side: int,
        in_channels: int,
        width: int,
        *,
        form: str = "auto",
        init: nnx.Initializer,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        """Initialise the layer.

        Args:
            side: side of a patch, in pixels.
            in_channels: channels of an image.
            width: channels of a token.
            form: one of `PATCH_FORMS`.
            init: initialiser of kernel and bias.
            dtype: type of the arithmetic.
            rngs: random keys.

        Raises:
            InputError: an unknown form.
        """
        if form not in PATCH_FORMS:
            raise InputError(f"patch_form={form!r}: expected one of {', '.join(PATCH_FORMS)}")
        fan_in = side * side * in_channels
        super().__init__(fan_in, width, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs)
        self.side, self.form = side, form

    def __call__(self, images: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Embed patches, in row-major order; `out_sharding` as in `nnx.Linear`."""
        product = functools.partial(self._product, out_sharding=out_sharding)
        if self.form == "auto":
            return jax.lax.platform_dependent(images, tpu=self._convolution, default=product)
        return product(images) if self.form == "product" else self._convolution(images)

    def _product(self, images: jax.Array, out_sharding: Any = None) -> jax.Array:
        batch, height, width, channels = images.shape
        rows, columns, side = height // self.side, width // self.side, self.side
        patches = images.reshape(batch, rows, side, columns, side, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
        return super().__call__(patches, out_sharding)

    def _convolution(self, images: jax.Array) -> jax.Array:
        assert self.bias is not None
        images, kernel, bias = nnx.nn.dtypes.promote_dtype(
            (images, self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        grid = jax.lax.conv_general_dilated(
            images,
            kernel.reshape(self.side, self.side, images.shape[-1], -1),
            window_strides=(self.side, self.side),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return grid.reshape(grid.shape[0], -1, grid.shape[-1]) + bias


class LayerScale(nnx.Module):
    """diag(λ) x: a learned factor for each channel (Touvron et al. 2021, CaiT, Eq. 4)."""

    def __init__(self, width: int, initial: float, *, dtype: jnp.dtype) -> None:
        """All of the `width` factors start at `initial`."""
        self.dtype = dtype
        self.scale = nnx.Param(jnp.full(width, initial))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] → [..., C]."""
        return x * self.scale[...].astype(self.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), with Φ the exact normal distribution function.

    For the gradient its value and derivative are stored, in the type of `x`, instead of `x`.
    Otherwise compilers recompute the value in every product that reads it, which on TPUs made the
    longest programs of a training step, and not faster ones.

    The arithmetic is in float32 at least, with and without a gradient, so that both give the same
    value: in bfloat16 Φ(x) alone would be rounded to 8 bits.
    """
    wide = _widened(x)
    return (wide * _normal_distribution(wide)).astype(x.dtype)


def _widened(x: jax.Array) -> jax.Array:
    """Return `x` in float32, or in its own type if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal_distribution(x: jax.Array) -> jax.Array:
    """Φ(x)."""
    return 0.5 + 0.5 * jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype))


def _gelu_and_derivative(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x Φ(x) and its derivative Φ(x) + x φ(x)."""
    wide = _widened(x)
    distribution = _normal_distribution(wide)
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    value, derivative = wide * distribution, distribution + wide * density
    return jax.lax.optimization_barrier((value.astype(x.dtype), derivative.astype(x.dtype)))


gelu.defvjp(_gelu_and_derivative, lambda derivative, d_out: (d_out * derivative,))


def drop_path(branch: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Stochastic depth: drop a residual branch for random images, in training.

    Args:
        branch: [B, N, C].
        rate: probability of dropping an image's branch, in [0, 1); the others are divided by
            1 - `rate`.
        key: random key, or None to return the branch unchanged.
    """
    if key is None:
        return branch
    keep_rate = 1 - rate
    mask = jax.random.bernoulli(key, keep_rate, (branch.shape[0], 1, 1))
    # The rate differs between layers. The barrier keeps it out of the operations that a compiler
    # fuses with the branch, so that the layers are identical and compiled only once.
    scale = jax.lax.optimization_barrier(mask / jnp.float32(keep_rate))
    return (branch * scale).astype(branch.dtype)
