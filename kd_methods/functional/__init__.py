"""Published losses as pure functions of tensors, one file a family.

Common to all: student tensors come first, the teacher's are constants (detached inside), the value is a scalar without
weight and without task loss, computed in fp32 under any autocast, and finite for any logits that fp16 can hold.
"""

from .feature import (
    activation_boundary,
    attention_transfer,
    class_activation,
    factor_transfer,
    fsp,
    hierarchical_context,
    hint,
    kdsvd,
    nst,
)
from .logit import (
    batch_correlation,
    class_correlation,
    dist,
    dkd,
    kd,
    logit_standardized_kd,
    nkd,
    ofa,
    standardize,
    ttm,
    wsld,
    wttm,
)
from .relation import (
    bank_scores,
    correlation_congruence,
    cosine_similarity,
    discriminative_consistent,
    kernel_congruence,
    noise_contrastive,
    pkt,
    rkd,
    similarity_preserving,
)

__all__ = [
    "activation_boundary",
    "attention_transfer",
    "bank_scores",
    "batch_correlation",
    "class_activation",
    "class_correlation",
    "correlation_congruence",
    "cosine_similarity",
    "discriminative_consistent",
    "dist",
    "dkd",
    "factor_transfer",
    "fsp",
    "hierarchical_context",
    "hint",
    "kd",
    "kdsvd",
    "kernel_congruence",
    "logit_standardized_kd",
    "nkd",
    "noise_contrastive",
    "nst",
    "ofa",
    "pkt",
    "rkd",
    "similarity_preserving",
    "standardize",
    "ttm",
    "wsld",
    "wttm",
]
