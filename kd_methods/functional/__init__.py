"""Published losses as pure functions of tensors, one file a family.

Common to all: student tensors come first, the teacher's are constants (detached inside), the value is a scalar without
weight and without task loss, computed in fp32 under any autocast, and finite for any logits that fp16 can hold.
"""

from .feature import attention_transfer, hint
from .logit import dkd, kd
from .relation import pkt, rkd, similarity_preserving

__all__ = ["attention_transfer", "dkd", "hint", "kd", "pkt", "rkd", "similarity_preserving"]
