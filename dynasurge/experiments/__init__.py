"""Prompts times settings make records, and records make tables.

Input: prompts, and a plan of settings. Output: a folder of rows, and tables of them with intervals.

Read: datasets (prompts), grid (a plan), runner (all settings take one prompt before any takes the
next), row_maker and schema (what a row holds), records (the folder), workers (several processes),
sweep, summary (closing tables), provenance. results_frame and per_step answer questions about rows,
and need no torch; tables prints them. measurements, text_distributions and rule_bias measure what
figures need in addition. published_records keeps numbers only. calibration measures acceptance for
--priors.
"""
