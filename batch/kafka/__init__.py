"""The batch jobs' reads and writes of Kafka.

archive lands events in the lake, archive_embeddings lands published rows in the offline log, kafka_source plans bounded
offset ranges, retention computes how long Kafka keeps records, publish sends rows to the embedding topics.
"""
