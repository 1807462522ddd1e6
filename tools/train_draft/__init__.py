"""Self-distillation: how the demo draft that Dynasurge ships was made, and how to make another.

    sample    the target writes sequences from written openers          -> sampling.py, prompts.py
    train     the draft learns the target's full distributions on them   -> training.py, loss.py, llama.py
    train-features    the same for one that reads its hidden states      -> feature_training.py, features.py
    evaluate  overlap of the two on continuations of real prompts        -> evaluation.py

The overlap sum_x min(p(x), q(x)) *is* the acceptance rate of a sampled draft token. So training
raises it: forward KL first, with total variation blended in towards the end. The flags of the demo
draft are in benchmarks/reproduce.sh (`shipped`). An independent draft, in about 7 minutes on one H100
80GB::

    python -m tools.train_draft sample --out samples
    python -m tools.train_draft train --samples samples --out run --cache-target
    python -m tools.train_draft evaluate --draft run/draft --prompts prompts.jsonl
"""

from tools.train_draft.settings import DistillSettings

__all__ = ["DistillSettings"]
