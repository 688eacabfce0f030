"""The commands, one file each: they parse options, call one function of a room, and print its result.

invocation.py holds what they share: settings, types of options, `--json`, `--dry-run`. Sub-packages group them by room;
cli.py registers all of them. Heavy imports stay inside the functions, so that `--help` is quick.
"""
