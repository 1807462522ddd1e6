"""Prompts times settings make records, and records make tables.

Enters: prompts, and a plan of settings. Leaves: an output folder of rows, and tables of them with
intervals.

Read: datasets and tasks (prompts), grid and baselines (a plan, other systems' trees), runner (all
settings take one prompt before any takes the next), row_maker and schema (what a row holds),
records (the folder), workers (several processes), sweep, summary, provenance; results_frame and
per_step answer questions about rows, with intervals, and need no torch; tables prints them.
measurements, text_distributions and rule_bias measure what figures need besides; published_records
keeps numbers only; calibration measures acceptance for --priors; timing compares a few settings on
one prompt.
"""
