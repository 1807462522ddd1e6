"""The loop: grow, score, verify, commit, record; and the faces it shows.

Follow one token from draw to commit through four files: decoding/phases.py asks for a level,
drafting/growth.py draws it, verification/rules.py accepts a path, models/kv_cache.py makes it part
of the text.

Enters: a pair, settings, a prompt. Leaves: tokens, and a record of every step.

Read: loop (one step after the other), phases (what a step consists of), executors (the phases
called, or replayed as CUDA graphs), report (what host and device tell each other), session
(`generate`, many prompts), engines (both models') and tree_room (how large trees get), assembly
(from settings to a loop), trace (all that a picture shows), transformers_adapter
(`model.generate`), latency (what passes cost here).
"""
