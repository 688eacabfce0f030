"""Downstream rankers, the first users of Spoor's embeddings.

Features, embeddings and histories come from the feature store, read as any ranker reads it. Three other things are
read: the log of events, for what was shown and what the users then did (dataset.py, impressions.py); the lake, from
which existing_features.py counts what a company without Spoor has already; and, for early fusion and fine-tuning, a
release's folder.

- The demo's ranker: ranker.py is the model, evaluate.py the lift table, recommend.py serves from the online store.
- Fine-tuning: finetune.py, train.py, host.py and fusion.py train a ranker with the encoder inside; tuned.py is its
  file, serving.py its work online, measure.py its tables.
- drift.py compares a release's vectors of two days.
"""
