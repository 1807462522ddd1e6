"""Dynasurge: tree-speculative decoding that fits the tree to the prompt and never changes what the target says.

Reading order: tree, growmap, sampling, policies, drafting, verification, cache, engine, decoding, generation.
"""

from dynasurge.config import Settings
from dynasurge.errors import UsageError
from dynasurge.generation import Generation, Session, generate
from dynasurge.growmap import Growmap, build_growmap, load_growmap, save_growmap
from dynasurge.models import Pair, load_pair
from dynasurge.tree import TokenTree

__version__ = "0.1.0"

__all__ = [
    "Generation",
    "Growmap",
    "Pair",
    "Session",
    "Settings",
    "TokenTree",
    "UsageError",
    "build_growmap",
    "generate",
    "load_growmap",
    "load_pair",
    "save_growmap",
]
