"""From events to what training reads: a corpus on disk, a split of its events, and batches.

corpus_build, corpus -> split (train, validation, test) -> batches, pairs (which event is asked for which item);
item_links counts which item follows which
"""
