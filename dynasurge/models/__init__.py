"""A pair of models, their caches, and one pass over a tree.

Enters: names of models, and token ids. Leaves: logits of every node of a tree, scored in one pass.

Read: pair (draft, target, do they fit), loading (what may be wrong with a model), compatibility
(which models can read a tree), vocabulary, prompts; then engine (extend, score, move), kv_cache
(rows of the text and of the tree), attention_masks (what a node sees), self_test (does it read a
tree as it reads text), model_changes (what is done to your models, and undone). On a GPU
cuda_graphs and compiled_blocks. law and processors say what is drawn from. demo_pair needs no hub;
widened has the cost of a large model, memory_floor the least that a token costs; threads chooses
how many a CPU uses; failures says what ran out.
"""
