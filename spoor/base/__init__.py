"""The lowest layer: every room may use it, and it uses no room.

errors: exceptions and exit codes · configuration, limits: settings from files, environment and flags · files, locks:
atomic writes, manifests, locks between processes · handed_in: users' texts and paths · times, numbers: as text ·
terminal: progress bars and log lines · release_names.
"""
