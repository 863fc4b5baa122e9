"""PyTorch autocast by its own op lists: in which dtype every op of a graph runs and which operands it converts.

The lists are those of PyTorch 2.13, `ATen/autocast_mode.h` (CUDA) and `ATen/autocast_mode.cpp` (CPU); a test compares
them with what the dispatcher has registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cohomcli.errors import UsageError
from cohomcli.precision.formats import get_format, holds
from cohomcli.precision.spec import ComputationGraph, Plan, Vertex
from cohomcli.precision.traffic import Flow, own_format

Device = Literal["cuda", "cpu"]
LOWER = ("bf16", "fp16")


@dataclass(frozen=True)
class OpLists:
    """ATen names without overload. `lower`: operands cast to the autocast dtype. `fp32`: operands cast to float32.

    `fp32_result`: float32 inside and out without a separate conversion. `promote`: operands cast to the widest of them.
    Every other op follows PyTorch's type promotion, which converts inside the op.
    """

    lower: frozenset[str]
    fp32: frozenset[str]
    fp32_result: frozenset[str]
    promote: frozenset[str]


def _names(*lists: str) -> frozenset[str]:
    return frozenset(" ".join(lists).split())


_LOSSES = """cosine_embedding_loss hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss
    multi_margin_loss multilabel_margin_loss nll_loss nll_loss2d poisson_nll_loss smooth_l1_loss soft_margin_loss
    triplet_margin_loss binary_cross_entropy_with_logits"""
_LOWER = """_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d addmm addbmm
    baddbmm bmm linalg_vecdot linear matmul mm prelu scaled_dot_product_attention"""
_CUDA_LOWER = """convolution cudnn_convolution cudnn_convolution_transpose addmv addr chain_matmul einsum
    linalg_multi_dot mv _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention"""
_CUDA_FP32 = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm
    native_layer_norm rms_norm group_norm frobenius_norm nuclear_norm cosine_similarity dist pdist cdist renorm
    logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d
    upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa
    upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa"""
_CUDA_FP32_RESULT = "prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm"
_CUDA_PROMOTE = "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"
_CPU_FP32 = """_grid_sampler_2d_cpu_fallback _lu_with_info adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d
    binary_cross_entropy cdist cholesky cholesky_inverse cholesky_solve cross_entropy_loss ctc_loss
    fake_quantize_per_tensor_affine fft_fft fft_fft2 fft_fftn fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_irfft
    fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn fractional_max_pool2d fractional_max_pool3d geqrf grid_sampler
    grid_sampler_2d grid_sampler_3d inverse linalg_cholesky linalg_cholesky_ex linalg_cond linalg_eig linalg_eigh
    linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex linalg_lstsq linalg_matrix_rank
    linalg_qr linalg_solve linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve lu_solve max_pool3d
    max_unpool2d max_unpool3d multilabel_margin_loss_forward nanquantile orgqr ormqr pinverse polar prod qr quantile
    reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d stft svd trace
    triangular_solve view_as_complex"""

OP_LISTS: dict[Device, OpLists] = {
    "cuda": OpLists(
        lower=_names(_LOWER, _CUDA_LOWER),
        fp32=_names(_LOSSES, _CUDA_FP32),
        fp32_result=_names(_CUDA_FP32_RESULT),
        promote=_names(_CUDA_PROMOTE),
    ),
    "cpu": OpLists(
        lower=_names(_LOWER, "_addmm_activation _native_multi_head_attention mkldnn_rnn_layer"),
        fp32=_names(_LOSSES, _CPU_FP32),
        fp32_result=frozenset(),
        promote=_names("cat stack index_copy"),
    ),
}
# These keep the dtype of their first operand although their parameters stay in float32.
_FIRST_DECIDES = _names(
    "batch_norm native_batch_norm cudnn_batch_norm instance_norm group_norm layer_norm native_layer_norm",
    "native_group_norm _native_batch_norm_legit_no_training",
)


def autocast_flow(graph: ComputationGraph, dtype: str, device: Device = "cuda") -> Flow:
    """Stored formats and conversions of a float32 model under `torch.autocast(device, dtype)`.

    Weights and inputs keep their dtypes; autocast caches its copies of weights until the context ends. Conversions that
    the model's own code asks for (`x.float()`, `softmax(dtype=...)`) are not seen: a graph captured in float32 has lost
    them.

    Raises:
        UsageError: `dtype` is not bf16 or fp16, or the device has no op list.
    """
    if dtype not in LOWER or device not in OP_LISTS:
        raise UsageError(f"no autocast to {dtype} on {device}", "use bf16 or fp16 on cuda or cpu")
    stored: list[str] = []
    asked: list[tuple[str, ...]] = []
    for vertex in graph.vertices:
        operands = tuple(stored[u] for u in vertex.operands)
        wanted = _wanted(vertex, operands, dtype, OP_LISTS[device])
        # autocast converts floating-point operands other than float64; a vertex without a format has "" and stays
        reads = tuple(wanted if wanted and f not in ("", "fp64") else "" for f in operands)
        asked.append(reads)
        widths = [r or f for r, f in zip(reads, operands, strict=True)]
        stored.append(_result(graph, vertex, widths, OP_LISTS[device]))
    return Flow(tuple(stored), tuple(asked), weights_cached=True)


def autocast_plan(graph: ComputationGraph, dtype: str, device: Device = "cuda") -> Plan:
    """The formats that autocast stores the results in, as a plan: "" where a vertex is fixed, weights as they are.

    Raises:
        UsageError: `dtype` is not bf16 or fp16, or the device has no op list.
    """
    stored = autocast_flow(graph, dtype, device).stored
    return Plan(tuple("" if v.fixed else f for v, f in zip(graph.vertices, stored, strict=True)))


def _name(vertex: Vertex) -> str:
    return vertex.target.split(".")[1] if vertex.target.startswith("aten.") else vertex.target


def _wanted(vertex: Vertex, operands: Sequence[str], dtype: str, lists: OpLists) -> str:
    """The format in which the op wants its floating-point operands, "" when it takes them as they are."""
    if vertex.kind != "op":
        return ""
    name = _name(vertex)
    if name in lists.lower:
        return dtype
    if name in lists.fp32:
        return "fp32"
    return widest([f for f in operands if f]) if name in lists.promote else ""


def _result(graph: ComputationGraph, vertex: Vertex, operands: Sequence[str], lists: OpLists) -> str:
    """The format of a vertex's value: that of its operands promoted, unless it is no real number or the op decides."""
    own = own_format(vertex)
    if vertex.kind != "op" or not own:
        return own
    name = _name(vertex)
    if name in lists.fp32_result:
        return "fp32"
    real = [(f, graph.vertices[u].shape) for f, u in zip(operands, vertex.operands, strict=True) if f]
    if not real:
        return own
    if name in _FIRST_DECIDES:
        return real[0][0]
    # a 0-dimensional tensor does not widen one that has dimensions
    return widest([f for f, shape in real if shape] or [f for f, _ in real])


def widest(formats: Sequence[str]) -> str:
    """The least format of the list, or else fp32, that holds them all (bf16 and fp16 promote to fp32); "" for none."""
    options = sorted(set(formats), key=lambda f: get_format(f).n_bytes)
    return next((f for f in [*options, "fp32"] if all(holds(g, f) for g in options)), "") if options else ""
