"""How a tree is drawn: where to draw next, and which tokens.

Enters: the draft's distributions and how often its guesses were accepted so far. Leaves: a properly
drawn tree, and what its children were drawn from.

Read: growth (level by level), reading (what a pass reads), kept_nodes (the tree that stays),
child_kinds, proposals (the children of nodes), prompt_lookup (copies from the text), slot_values and
acceptance_estimates (what a slot is worth), tree_budget (how many slots stay), cost_model (what
passes cost).
"""
