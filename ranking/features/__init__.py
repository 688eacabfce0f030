"""What rankers are fed and learn from.

existing_features.py counts what a company has without Spoor; online.py reads Feast, at a point in time or now.
dataset.py has the requests of the lift table and turns Feast's columns into numbers; impressions.py finds what users
were shown; attributes.py turns item attributes into numbers.
"""
