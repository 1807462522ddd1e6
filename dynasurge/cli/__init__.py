"""Commands. A mistake costs one line and exit code 2; nothing else prints.

Enters: words and flags. Leaves: files, a table, an exit code.

Read: main (which command), flags, run (what all that decode do), decode, sweep; table, growmap,
calibrate, publish, figures.
"""
