"""Kafka as the batch jobs see it.

archive lands events in the lake, archive_embeddings lands published rows in the offline log; kafka_source plans bounded
offset ranges, retention says how long records stay, publish sends rows.
"""
