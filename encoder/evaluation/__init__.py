"""How well a release, or a plain rule, ranks what comes next: full ranking, never sampled.

questions (what is asked) -> scoring (a number for every known item) -> metrics (where the target landed) -> report
"""
