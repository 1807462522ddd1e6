"""Figures, trees as pictures, the explorer, and notebooks as programs.

Input: tables of records, and traces. Output: SVG, PNG and a widget.

Read: style, figures (of a run), study_figures and rule_figures (of published records); tree_layout
(where nodes go), tree_svg (a step as SVG), pictures (PNG, files, what a notebook shows), page (a
generation as one HTML file), explorer and background (the widget and its thread), notebooks (run
and clean them).
"""
