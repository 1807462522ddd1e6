"""What a tree is; no model is known here.

Input: a shape, or tokens with their parents. Output: a `TokenTree` (one drafted tree) or a
`Growmap` (the shape of static trees), and the best growmap for a measured acceptance vector.

Read: token_tree (nodes, parents, depths), growmap (shapes and their files), optimal_growmap (the
best shape of a size).
"""
