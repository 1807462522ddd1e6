"""Commands. A mistake costs one line and exit code 2; no other room prints.

Input: words and flags. Output: files, a table, an exit code.

Read: main (which command), flags, run (what all commands that decode do), decode, sweep; growmap,
calibrate, table, publish, figures.
"""
