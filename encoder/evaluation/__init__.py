"""Evaluates how well a release or a baseline ranks a user's next item: full ranking, never sampled.

questions (inputs and targets) -> scoring (a score for every known item) -> metrics (rank of the target) -> report
"""
