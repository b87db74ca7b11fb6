"""DiT blocks on a CPU: all element-wise work between two matrix products is one pass over rows (dit_passes.c).

    norm(x) = (1 + scale) LayerNorm(x) + shift, the norm without parameters
    a block: y = x + gate_a (W_out Attention(W_qkv norm_a(x) + b_qkv) + b_out)
             y + gate_m (W_outer SwiGLU(W_inner norm_m(y) + b_inner) + b_outer)
Rows are atoms, molecule after molecule; shift, scale and gate are per molecule. Plain torch makes many passes, over
copies of every molecule's shift for each of its atoms and with padded attention. Here a gated sum and the norm that
follows it are one pass, also across blocks. Biases are added where rows are read anyway: torch's product first copies
the bias to every row, and its backward pass reads all gradients once more to sum them. The backward pass of all blocks
is written by hand too, because hundreds of autograd nodes cost as much as some of these passes; it frees the stored
activations at its end.

Under autocast inputs and outputs of linear layers are bf16; everything else is float32. Padding rows may follow those
of the last molecule (`rows.padded_rows`); the passes set them and their gradients to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.backbones.dit import EPS, Block, Trunk
from bench.geometry.layout import Layout
from bench.kernels.native import Library, library, of_products, replace, required, usable
from bench.kernels.rows import MULTIPLE, joint_linear, padded_rows
from bench.kernels.threads import n_threads

SOURCE = Path(__file__).with_suffix(".c")
LANES = 8  # of dit_passes.c

Layers = tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]  # qkv, out, inner, outer


def install(model: nn.Module) -> bool:
    """Replace the transformer blocks of every trunk; False without a trunk or without a C compiler."""
    trunks = [module for module in model.modules() if isinstance(module, Trunk) and len(module.blocks)]
    if not trunks or library(SOURCE) is None:
        return False
    for trunk in trunks:
        replace(trunk, "forward", forward)
    return True


def forward(
    self: Trunk,
    tokens: Float[Tensor, "A H"],
    t: Float[Tensor, "B"],
    layout: Layout,
    biases: Sequence[Tensor] | None = None,
) -> tuple[Float[Tensor, "A H"], Tensor]:
    """`Trunk.forward`; attention with biases is left to plain torch."""
    if biases is not None or not usable(tokens):
        return Trunk.forward(self, tokens, t, layout, biases)
    of_blocks, n_atoms = [cast(Block, block) for block in self.blocks], len(tokens)
    c = F.silu(self.time(t))
    modulation = joint_linear(c, [block.modulation for block in of_blocks])
    layers = [(block.attention.qkv, block.attention.out, block.mlp.inner, block.mlp.outer) for block in of_blocks]
    tokens = padded_rows(tokens)  # once for all layers
    return blocks(tokens, modulation, layers, of_blocks[0].attention.n_heads, layout, EPS)[:n_atoms], c


def blocks(
    x: Float[Tensor, "A H"],
    modulation: Float[Tensor, "B six_H_each"],
    layers: Sequence[Layers],
    n_heads: int,
    layout: Layout,
    eps: float,
) -> Float[Tensor, "A H"]:
    """The tokens after these blocks (at least one); of each [shift_a, scale_a, gate_a, shift_m, scale_m, gate_m].

    Raises:
        ValueError: inconsistent shapes, or a dtype other than float32.
        RuntimeError: the C file cannot be compiled.
    """
    _check(x, modulation, 6 * len(layers), layout)
    H = x.shape[1]
    K = layers[0][3].in_features
    expected = [(3 * H, H), (3 * H,), (H, H), (H,), (2 * K, H), (2 * K,), (H, K), (H,)]
    given: list[Tensor] = []
    for of_block in layers:
        tensors = [tensor for layer in of_block for tensor in (layer.weight, layer.bias)]
        if [x.shape for x in tensors] != expected or any(x.dtype != torch.float32 for x in tensors):
            found = [(tuple(x.shape), x.dtype) for x in tensors]
            raise ValueError(f"linear layers are {found}; expected {expected} in float32")
        given += tensors
    if H % n_heads:
        raise ValueError(f"{H} channels are not those of {n_heads} heads")
    passes = Passes(layout, of_products(), eps)
    is_kept = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, modulation, *given))
    with torch.autocast("cpu", enabled=False):  # the function casts what goes into its products itself
        return _Blocks.apply(x, modulation, n_heads, passes, is_kept, *given)  # type: ignore[no-any-return]


def _check(x: Tensor, modulation: Tensor, n_parts: int, layout: Layout) -> None:
    """Check shapes and dtypes, which C does not."""
    if x.dtype != torch.float32 or not 0 <= len(x) - layout.n_total < MULTIPLE:
        raise ValueError(f"{len(x)} rows in {x.dtype} for {layout.n_total} atoms; expected float32")
    expected = (len(layout.sizes), n_parts * x.shape[1])
    if modulation.shape != expected or modulation.dtype != torch.float32:
        raise ValueError(
            f"a modulation is {tuple(modulation.shape)} in {modulation.dtype}; expected {expected} in float32"
        )


class Parts(NamedTuple):
    """What a sum and its norm take from a modulation, [B, H] each: without a gate or a scale they are not made."""

    gate: Tensor | None
    shift: Tensor | None
    scale: Tensor | None

    @property
    def stride(self) -> int:
        return next(part.stride(0) for part in self if part is not None)


def _parts(modulation: Tensor, H: int) -> list[Parts]:
    """Of the first norm, which comes after no sum, then of each sum and its norm; the last sum has none."""
    columns = [None, *modulation.split(H, dim=1), None, None]
    return [Parts(*columns[i : i + 3]) for i in range(0, len(columns), 3)]


class After(NamedTuple):
    """Sums, mean and inverse deviation of each row, and the gradient of their norm."""

    sums: Tensor
    moments: Tensor
    of_normed: Tensor


def _padded(n: Any) -> Any:
    return -(-n // LANES) * LANES


@dataclass(frozen=True)
class Passes:
    """The C functions for a layout: each takes contiguous arrays, except that modulations are columns of one."""

    layout: Layout
    products: torch.dtype  # of what goes into matrix products and comes out of them
    eps: float

    @property
    def c(self) -> Library:
        return required(SOURCE)

    @property
    def weights_before(self) -> Tensor:
        """Softmax weights of one head in the molecules before each, and in all [B + 1]; made once for a layout."""
        memo = self.layout.memo
        if "weights before" not in memo:
            n = torch.as_tensor(self.layout.sizes)
            memo["weights before"] = F.pad((n * _padded(n)).cumsum(0), (1, 0))
        return memo["weights before"]

    def threads(self, x: Tensor) -> int:
        return n_threads(x.numel())

    def of(self, x: Tensor) -> tuple[Any, ...]:
        """First arguments of the functions that go through molecules, for rows of H."""
        A, H = x.shape
        return self.threads(x), len(self.layout.sizes), self.layout.ptr, A, H, int(self.products is torch.bfloat16)

    def add_norm(self, x: Tensor, parts: Parts, y: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Any, Any]:
        """x + gate (y + bias), its norm, and the mean and inverse deviation of each row; x itself without a gate."""
        sums = x if parts.gate is None else torch.empty_like(x)
        normed = moments = None
        if parts.scale is not None:
            normed, moments = torch.empty_like(x, dtype=self.products), x.new_empty(len(x), 2)
        self.c.add_norm(*self.of(x), x, y, bias, *parts, parts.stride, self.eps, sums, normed, moments)
        return sums, normed, moments

    def add_norm_gradient(
        self,
        parts: Parts,
        of_parts: Parts,
        of_sums: Tensor,
        beside: Tensor | None = None,
        after: After | None = None,
        y: Tensor | None = None,
        of_y: Tensor | None = None,
        bias: Tensor | None = None,
        of_bias: Tensor | None = None,
    ) -> None:
        """Writes the gradients of the sums, of y and of the modulation, and adds that of the bias to a row per thread.

        Args:
            beside: what the sums have from elsewhere; may be `of_sums`.
            after: of the norm of the sums, where they have one.
        """
        sums, moments, of_normed = after or (None, None, None)
        given = y, bias, parts.gate, parts.scale, parts.stride, sums, moments, of_normed, beside, of_sums, of_y, of_bias
        apart = 0 if of_bias is None else of_bias.stride(0)
        self.c.add_norm_gradient(*self.of(of_sums), *given, apart, *of_parts, of_parts.stride)

    def swiglu(self, uv: Tensor, bias: Tensor) -> Tensor:
        """SiLU(u) v for [u, v] + bias."""
        A, K = len(uv), uv.shape[1] // 2
        out = uv.new_empty(A, K)
        self.c.swiglu(self.threads(uv), A, K, int(self.products is torch.bfloat16), uv, bias, out)
        return out

    def swiglu_gradient(self, uv: Tensor, bias: Tensor, grad: Tensor, of_bias: Tensor, of_uv: Tensor) -> None:
        A, K = grad.shape
        given = (uv, bias, grad, of_uv, of_bias, of_bias.stride(0))
        self.c.swiglu_gradient(len(of_bias), A, K, int(self.products is torch.bfloat16), *given)

    def attention(self, qkv: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
        """softmax(q k^T / sqrt(d)) v of each molecule and head, for [q, k, v] + bias; and softmax itself."""
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        n, d = _padded(self.layout.n_largest), _padded(out.shape[1] // n_heads)
        before = self.weights_before
        weights = bias.new_empty(n_heads * int(before[-1]))
        room = n * (3 * n_heads + 1) * d
        scratch = bias.new_empty(self.threads(out), room)
        self.c.attention(*self.of(out), n_heads, qkv, bias, out, weights, before, scratch, room)
        return out, weights

    def attention_gradient(
        self, qkv: Tensor, bias: Tensor, weights: Tensor, n_heads: int, grad: Tensor, of_bias: Tensor, of_qkv: Tensor
    ) -> None:
        n, d = _padded(self.layout.n_largest), _padded(grad.shape[1] // n_heads)
        room = n * ((4 * n_heads + 1) * d + n)
        scratch = bias.new_empty(self.threads(grad), room)
        given = (qkv, bias, weights, self.weights_before, grad, of_qkv, of_bias, of_bias.stride(0), scratch, room)
        self.c.attention_gradient(*self.of(grad), n_heads, *given)


class _Blocks(torch.autograd.Function):
    """Each block is two sublayers alike: norm, layer, attention or SwiGLU, layer, gated sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, modulation: Tensor, n_heads: int, passes: Passes, is_kept: bool, *layers: Tensor
    ) -> Tensor:
        x, modulation = x.contiguous(), modulation.contiguous()
        first, *others = _parts(modulation, x.shape[1])
        kept: list[Tensor | None] = [modulation]
        _, normed, moments = passes.add_norm(x, first, None, None)
        for i, parts in enumerate(others):
            W_in, b_in, W_out, b_out = (given.contiguous() for given in layers[4 * i : 4 * i + 4])
            W_in, W_out = W_in.to(passes.products), W_out.to(passes.products)
            wide = F.linear(normed, W_in)
            if i % 2:
                narrow, weights = passes.swiglu(wide, b_in), None
            else:
                narrow, weights = passes.attention(wide, b_in, n_heads)
            y = F.linear(narrow, W_out)
            if is_kept:
                kept += W_in, b_in, W_out, b_out, x, normed, moments, wide, weights, narrow, y
            x, normed, moments = passes.add_norm(x, parts, y, b_out)
        ctx.save_for_backward(*kept)
        ctx.n_heads, ctx.passes = n_heads, passes
        return x

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)  # whoever calls this may have it on
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        passes, (modulation, *kept) = ctx.passes, ctx.saved_tensors
        sublayers = [kept[i : i + 11] for i in range(0, len(kept), 11)]
        beside, of_modulation = grads[0].contiguous(), torch.empty_like(modulation)
        of_x = torch.empty_like(beside)
        parts, of_parts = (_parts(given, of_x.shape[1]) for given in (modulation, of_modulation))
        widths = [len(b) for _, b_in, _, b_out, *_ in sublayers for b in (b_in, b_out)]
        of_biases = of_x.new_zeros(passes.threads(of_x), sum(widths))  # a row of each thread
        by_layer = of_biases.split(widths, dim=1)
        of_weights: list[Tensor] = []
        # arrays of one sublayer's gradients are the next one's, while a cache may still have them
        of_normed, of_y = torch.empty_like(sublayers[0][5]), torch.empty_like(sublayers[0][10])
        of_inner = [(torch.empty_like(wide), torch.empty_like(narrow)) for *_, wide, _, narrow, _ in sublayers[:2]]
        after = None
        for i, sublayer in reversed([*enumerate(sublayers)]):
            W_in, b_in, W_out, b_out, x, normed, moments, wide, weights, narrow, y = sublayer
            (of_wide, of_narrow), (of_b_in, of_b_out) = of_inner[i % 2], by_layer[2 * i : 2 * i + 2]
            passes.add_norm_gradient(parts[i + 1], of_parts[i + 1], of_x, beside, after, y, of_y, b_out, of_b_out)
            torch.mm(of_y, W_out, out=of_narrow)
            of_W_out = of_y.t() @ narrow
            if i % 2:
                passes.swiglu_gradient(wide, b_in, of_narrow, of_b_in, of_wide)
            else:
                passes.attention_gradient(wide, b_in, weights, ctx.n_heads, of_narrow, of_b_in, of_wide)
            of_weights += of_W_out, of_wide.t() @ normed
            torch.mm(of_wide, W_in, out=of_normed)
            after, beside = After(x, moments, of_normed), of_x
        passes.add_norm_gradient(parts[0], of_parts[0], of_x, beside, after)
        # autograd casts the gradients of weights to float32
        of_layers = zip(reversed(of_weights), of_biases.sum(0).split(widths), strict=True)
        return of_x, of_modulation, None, None, None, *(grad for of_layer in of_layers for grad in of_layer)
