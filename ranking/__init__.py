"""Rankers that read Feast, the first users of Spoor's embeddings.

features/ reads what a ranker is fed: from Feast, from the log of events, and from the lake for the features that a
company has already. ranker/ trains, measures and serves one ranker, without the encoder, beside its vectors, or with
the encoder inside. settings.py is section [finetune].
"""
