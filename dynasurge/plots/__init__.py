"""Figures, trees as pictures, the explorer, and notebooks as programs.

Input: tables of records, and traces. Output: SVG, PNG and a widget.

Read: style, study_figures and rule_figures (of records), figures (a tree's shape; files);
tree_layout (where nodes go), tree_svg (a step as SVG), pictures (PNG, files, what a notebook
shows), page (a generation as one HTML file), explorer, sides and background (the widget, its
controls and its thread), notebooks (run and clean them).
"""
