"""Rankers that read Spoor's embeddings from Feast.

features/ builds a ranker's inputs: from Feast, from the event log, and from the lake for a company's existing features.
ranker/ trains, measures and serves one ranker: without the encoder, on its vectors, or with the encoder inside.
settings.py is section [finetune].
"""
