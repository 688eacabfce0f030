"""A downstream ranker, the first user of Spoor's embeddings: it reads the feature store and nothing else.

existing_features.py writes the counts and rates that every company has already; dataset.py builds point-in-time
training rows; ranker.py is the model; evaluate.py the lift table; recommend.py serves from the online store.
"""
