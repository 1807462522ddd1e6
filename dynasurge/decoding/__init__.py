"""The loop: grow, score, verify, commit, record; and the faces it shows.

Follow one token from draw to commit through four files: decoding/loop.py asks for a tree,
drafting/growth.py draws it, verification/rules.py accepts a path, models/kv_cache.py makes it part
of the text.

Enters: a pair, settings, a prompt. Leaves: tokens, and a record of every step.

Read: loop (one step after the other), session (`generate`, many prompts), engines (both models'),
decoders and assembly (from settings to a loop and its parts), trace (all that a picture shows),
transformers_adapter (`model.generate`), latency (what passes cost here). On a GPU steps are
captured: captured_loop, captured_exchange (what host and device tell each other), captured_latency.
"""
