"""Batch jobs over Beam and over the lake: archive, backfill, verify, export, sweep, drift, forget, expire, merge users.

kafka/ reads and writes topics, users/ computes histories and embeddings of all users, forget/ deletes users' data. jobs
runs a pipeline, job_metrics writes metrics files, progress shows finished work items, releases loads encoders, settings
declares what jobs read of the configuration.
"""
