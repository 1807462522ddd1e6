"""Which path of a tree is accepted, so that the text keeps the target's own distribution.

Input: a drawn tree, the target's distributions at its nodes, and what its children were drawn from.
Output: the probability that the accepted path stops at each node, and the distribution of the bonus
token after it.

Read: rules (topdown, traversal, reserved), families (what they work on), audit (is a rule
lossless?), audit_report, properly_drawn (what a drawing breaks), enumeration (every outcome of a
function of chance), sampled_audit (for engines of which only tokens come out), mistakes (what looks
right and is not), single_node_bound (what no rule can exceed), optimum (nor over all levels), others
(rules of other papers), sorted_siblings (a rule that tries first what the target wants most),
prototype (the original rule, lossy).
"""
