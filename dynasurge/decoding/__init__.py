"""The loop (grow, score, verify, commit, record) and its interfaces.

Follow one token from draw to commit through four files. decoding/loop.py requests a tree,
drafting/growth.py draws it, verification/rules.py accepts a path, models/kv_cache.py makes the path
part of the text.

Input: a pair, settings, a prompt. Output: tokens, and a record of every step.

Read: loop (one step after the other), session (`generate`, many prompts), assembly (from settings
to the parts of a loop), trace (all that a picture shows), transformers_adapter (`model.generate`),
latency (what passes cost here). On a GPU steps are captured: captured_loop, captured_exchange (what
host and device send each other), captured_latency.
"""
