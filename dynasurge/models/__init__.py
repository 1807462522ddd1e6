"""A pair of models, their caches, and one pass over a tree.

Input: names of models, and token ids. Output: the logits of all nodes of a tree, scored in one
pass.

Read: pair (draft, target, whether they fit), loading (what may be wrong with a model),
compatibility (which models can read a tree), vocabulary, prompts; then engine (extend, forward,
commit), kv_cache (rows of the text and of the tree), attention_masks (what a node sees), self_test
(whether a model reads a tree as it reads text). model_changes lists what is done to a model. On a
GPU: cuda_graphs and compiled_blocks. demo_pair needs no hub; failures names the part to shrink.
"""
