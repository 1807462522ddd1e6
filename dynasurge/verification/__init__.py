"""Which path of a tree is accepted, so that the text keeps the target's own law.

Enters: a drawn tree, the target's distributions at its nodes, what its children were drawn from.
Leaves: the law of where the accepted path stops and of the bonus token behind it.

Read: rules (topdown, traversal, reserved), properly_drawn (why the order of drawing matters),
single_node_bound (what no rule can beat), prototype (the original rule, lossy); captured_rules has
the rules in tensors of fixed shape for a GPU.
"""
