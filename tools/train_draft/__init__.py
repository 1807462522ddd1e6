"""Self-distillation: how the demo draft that Dynasurge ships was made, and how to make another.

    sample    the target writes sequences from written openers          -> sampling.py, prompts.py
    train     the draft learns the target's full distributions on them   -> training.py, loss.py, llama.py
    evaluate  overlap of the two on continuations of real prompts        -> evaluation.py

The overlap sum_x min(p(x), q(x)) *is* the acceptance rate of a sampled draft token. So training
raises it: forward KL first, with total variation blended in towards the end. The demo draft is the
result of these commands with the defaults of ``DistillSettings`` (seed 20261123), on one H100 80GB
in about 7 minutes::

    python -m tools.train_draft sample --out samples
    python -m tools.train_draft train --samples samples --out run --cache-target
    python -m tools.train_draft evaluate --draft run/draft --prompts prompts.jsonl
"""

from tools.train_draft.settings import DistillSettings

__all__ = ["DistillSettings"]
