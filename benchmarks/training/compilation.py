"""Networks compiled by torch: a protocol's choice, the same for teacher and students."""

from __future__ import annotations

from ..config.protocol import Protocol

GRAPHS = 256
"""Of all networks that one process trains: each architecture has one as a teacher, and one as a student."""


def samples(protocol: Protocol) -> int:
    """How many samples a pass has that runs compiled: a whole part of a batch, 0 for none.

    An epoch's last batch, which may be smaller, and evaluation run as without a compiler, for each size has to be
    compiled anew. Where torch would give up compiling, and go on without a word, it fails instead.
    """
    if not protocol.compile:
        return 0
    from torch._dynamo import config  # slow to import

    config.recompile_limit = config.accumulated_recompile_limit = GRAPHS
    config.fail_on_recompile_limit_hit = True
    return protocol.part_size
