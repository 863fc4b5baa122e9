"""The ATen operators an exported graph may call: pure functions of tensors and plain values.

None of them reads files, draws from a random generator, or changes how memory is laid out (`as_strided`, `resize_`,
`set_`). In-place ones (`relu_`) change only tensors of the graph itself.
"""

_NAMES = """
__and__ __or__ __xor__ _assert_scalar _assert_tensor_metadata _log_softmax _softmax _to_copy _unsafe_view abs
acos adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add add_ addcdiv addcmul addmm alias all amax
amin any arange argmax argmin asin atan atan2 avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and
bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm bucketize cat cdist ceil celu
chunk clamp clamp_ clamp_max clamp_min clip clone concat conj constant_pad_nd contiguous conv1d conv2d conv3d
conv_transpose1d conv_transpose2d convolution copy copy_ cos cosh cosine_similarity count_nonzero cross
cumprod cumsum detach detach_ diag diagonal diff div div_ dot dropout dropout_ dstack einsum elu embedding
empty empty_like eq erf erfc erfinv exp exp_ expand expand_as expand_copy expm1 eye feature_dropout fill fill_
flatten flip floor floor_ floor_divide fmod frobenius_norm full full_like gather ge gelu glu group_norm gt
hardsigmoid hardswish hardtanh hardtanh_ hstack imag index index_add index_put index_put_ index_select
instance_norm isfinite isin isinf isnan item kron layer_norm le leaky_relu leaky_relu_ lerp lift_fresh
lift_fresh_copy linalg_norm linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax
logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill masked_fill_ masked_scatter
matmul max max_pool1d max_pool2d max_pool3d maximum mean meshgrid min minimum mish mm movedim mul mul_ mv
nan_to_num narrow native_batch_norm native_dropout native_group_norm native_layer_norm ne neg new_empty
new_full new_ones new_zeros nonzero norm numel ones ones_like outer pad pairwise_distance permute
pixel_shuffle pixel_unshuffle polar pow prelu prod real reciprocal reflection_pad1d reflection_pad2d relu
relu6 relu_ remainder repeat repeat_interleave replication_pad2d reshape rms_norm roll round rsqrt rsub
scalar_tensor scaled_dot_product_attention scatter scatter_add searchsorted select select_scatter selu sigmoid
sigmoid_ sign silu silu_ sin sinh size slice slice_scatter softmax softmin softplus sort split
split_with_sizes sqrt square squeeze squeeze_ stack std sub sub_ sum swapaxes sym_constrain_range_for_size
sym_numel sym_size sym_stride t tan tanh tanh_ tensor_split threshold tile to topk trace transpose tril tril_
triu triu_ type_as unbind unflatten unfold unsqueeze unsqueeze_ upsample_bicubic2d upsample_bilinear2d
upsample_linear1d upsample_nearest1d upsample_nearest2d var var_mean vdot view view_as view_as_complex
view_as_real vstack where zero_ zeros zeros_like
"""

PURE_OPERATORS = frozenset(_NAMES.split())
