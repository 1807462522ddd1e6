"""Figures, trees as pictures, the explorer, and notebooks as programs.

Input: tables of records, and traces. Output: SVG, PNG and a widget.

Read: style, figures (of a run), study_figures and rule_figures (of published records); tree_layout
(where nodes go), tree_svg (a step as a picture), explorer and background (the widget and its
thread), notebooks (run and clean them).
"""
