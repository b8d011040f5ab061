"""Proves a pruned file against its source and plan, without trusting how it was written.

The law: the pruned file computes what the original computes with the dropped experts masked.
"""

from ggufreap.verification.checks import FREE, Check
from ggufreap.verification.proof import N_TOKENS, Verification, check_room, verify_file

__all__ = ["FREE", "N_TOKENS", "Check", "Verification", "check_room", "verify_file"]
