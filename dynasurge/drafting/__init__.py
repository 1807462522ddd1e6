"""How a tree is drawn: where to draw next, and which tokens.

Input: the draft's distributions, and how often its guesses were accepted so far. Output: a properly
drawn tree, and the distributions of its children.

Read: growth (level by level), proposals (the children of a node), prompt_lookup (copies from the
text), acceptance_estimates (the value of a slot), tree_budget (how many slots stay), cost_model
(the cost of passes). A captured step on a GPU does the same in tensors of fixed shape:
captured_tree, captured_proposals, captured_frontier, captured_budget.
"""
