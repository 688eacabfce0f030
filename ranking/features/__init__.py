"""Inputs and training rows of rankers.

existing_features.py computes the counts that a company has without Spoor; online.py reads Feast, at a point in time or
online. dataset.py has the requests of the lift table and turns Feast's columns into numbers; impressions.py finds the
items shown to users; attributes.py turns item attributes into numbers.
"""
