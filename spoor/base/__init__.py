"""What every room may use, and what uses no room.

errors: their exit codes · configuration, limits: settings from files, environment and flags · files, locks: atomic
writes, manifests, one process at a time · handed_in: users' texts and paths · times, numbers: as text · release_names.
"""
