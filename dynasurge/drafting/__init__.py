"""How a tree is drawn: where to draw next, and which tokens.

Enters: the draft's distributions and how often its guesses were accepted so far. Leaves: a properly
drawn tree, and what its children were drawn from.

Read: growth (level by level), child_kinds, proposals (the children of a node), prompt_lookup
(copies from the text), acceptance_estimates (what a slot is worth), tree_budget (how many slots
stay), cost_model (what passes cost). A captured step on a GPU does the same in tensors of fixed
shape: captured_tree, captured_proposals, captured_frontier, captured_budget.
"""
