"""Which path of a tree is accepted, so that the text keeps the target's own distribution.

Input: a drawn tree, the target's distributions at its nodes, and what its children were drawn from.
Output: the probability that the accepted path stops at each node, and the distribution of the bonus
token after it.

Read: rules (topdown, traversal, reserved), families (what they work on), audit (is a rule
lossless?), enumeration (every outcome of a function of chance), sampled_audit (for engines of which
only tokens come out), mistakes (what looks right and is not), single_node_bound (what no rule can
exceed), others (rules of other papers), lookahead (a rule that looks at two siblings), prototype
(the original rule, lossy).
"""
