"""A small Hugging Face Hub on 127.0.0.1, for the tests of push and pull.

It speaks as much of the protocol as our flows use: model repositories, one commit at a time, LFS and xet, Range,
private and gated repositories, and faults on request. The real huggingface_hub is its only client.
"""

from .client import point_client_at
from .faults import Fault, cut, fail, first, lose_answer, slow
from .server import ALICE, ALICE_READ_ONLY, BOB, LocalHub
from .state import Repo

__all__ = [
    "ALICE",
    "ALICE_READ_ONLY",
    "BOB",
    "Fault",
    "LocalHub",
    "Repo",
    "cut",
    "fail",
    "first",
    "lose_answer",
    "point_client_at",
    "slow",
]
