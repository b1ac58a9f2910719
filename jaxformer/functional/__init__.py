"""The mathematics of the Transformer as pure functions on arrays: no Flax, no configuration objects."""

from jaxformer.functional.apart import together
from jaxformer.functional.attention import (
    disentangled_bias,
    dot_product_attention,
    multi_head_attention,
    project_key_value,
)
from jaxformer.functional.block_sparse import block_sparse_attention, random_blocks, sparse_bias
from jaxformer.functional.convolution import causal_convolution, convolution_tail, token_convolution
from jaxformer.functional.decoding.int8 import IntegerKernel, Quantized, quantize
from jaxformer.functional.decoding.key_value import (
    KeyValue,
    append_key_value,
    cached_attention,
    cached_cross_attention,
    cached_self_attention,
    empty_key_value,
    prefill_attention,
)
from jaxformer.functional.decoding.packed import Packed, pack, pack_table, take_rows
from jaxformer.functional.distillation import DistillationSums, chunked_distillation_loss, distillation_loss
from jaxformer.functional.embedding import (
    contrastive_scores,
    cosent_loss,
    cosines,
    pool_states,
    unit,
)
from jaxformer.functional.exact.attention import exact_multi_head_attention
from jaxformer.functional.exact.rows import (
    ExactKernel,
    exact_elementwise,
    exact_layer_norm,
    exact_log_softmax,
    exact_rms_norm,
    exact_shape_logits,
    exact_token_log_probs,
)
from jaxformer.functional.exact.seal import call
from jaxformer.functional.experts import (
    RouterSums,
    Routing,
    balance_loss,
    expert_count,
    expert_feed_forward,
    expert_prices,
    route,
    router_sums,
    router_z_loss,
)
from jaxformer.functional.feed_forward import (
    ACTIVATIONS,
    feed_forward,
    gelu,
    gelu_sigmoid,
    gelu_tanh,
    relu,
    silu,
    tanh,
)
from jaxformer.functional.kernels.choose import kernel_attention
from jaxformer.functional.kernels.splash import Split
from jaxformer.functional.linear import JoinedKernel, LowRankKernel, RoundedKernel, linear, rounded_product
from jaxformer.functional.local_attention import (
    Layout,
    Summaries,
    block_sums,
    local_attention,
    local_layout,
    summary_blocks,
)
from jaxformer.functional.log_probs import (
    IGNORE,
    HeadWeights,
    chunked_token_log_probs,
    head_logits,
    sequence_log_probs,
    token_log_probs,
)
from jaxformer.functional.losses import (
    LossSum,
    TokenLoss,
    binary_cross_entropy,
    chunked_cross_entropy,
    class_weighted_cross_entropy,
    cross_entropy,
    squared_error,
)
from jaxformer.functional.mask import MASKED, STATIC, Mask, position_ids_from_mask, position_ids_from_segments
from jaxformer.functional.norm import layer_norm, rms_norm
from jaxformer.functional.penalties import (
    ban_sequences,
    bias_sequences,
    count_penalties,
    length_decay,
    no_repeat_ngram,
    repetition_penalty,
)
from jaxformer.functional.policy import (
    ClippedLoss,
    adapted_kl_coefficient,
    generalized_advantages,
    grpo_advantages,
    grpo_loss,
    kl_estimates,
    masked_mean,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    rloo_advantages,
    rloo_loss,
    token_rewards,
)
from jaxformer.functional.positions import (
    Rotary,
    RotaryScaling,
    alibi_bias,
    alibi_slopes,
    apply_rotary,
    disentangled_buckets,
    learned_positions,
    relative_bias,
    relative_buckets,
    rotary_angles,
    rotary_frequencies,
    sinusoidal_positions,
)
from jaxformer.functional.preference import (
    bradley_terry_loss,
    dpo_loss,
    hinge_dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
)
from jaxformer.functional.random import dropout, example_keys, purpose_key
from jaxformer.functional.sampling import (
    min_p_logits,
    sample_token,
    shape_logits,
    top_k_by_row,
    top_k_logits,
    top_p_logits,
    typical_logits,
)
from jaxformer.functional.state_space import (
    selective_scan,
    state_space_duality,
)
