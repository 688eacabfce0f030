"""How well a release, or a plain rule, ranks what comes next: full ranking, never sampled.

questions (what is asked) -> scorers (a number for every known item) -> places (where the target landed) -> report.
"""
