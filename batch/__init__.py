"""Batch jobs over Beam and over the lake: archive, backfill, verify, export, sweep, drift, forget, expire, merge users.

kafka/ reads and writes topics, users/ computes histories and embeddings of all users, forget/ deletes. jobs runs a
pipeline, job_metrics writes its figures, progress shows them, releases loads encoders, settings lists what jobs read.
"""
