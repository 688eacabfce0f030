"""Training data from events: a corpus on disk, a split of its events, and batches.

corpus_build, corpus -> split (train, validation, test) -> batches, pairs (event and target item of the losses);
item_links counts which item follows which
"""
