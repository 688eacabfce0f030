"""User activity: events, histories, their bytes and their files. It needs numpy, pyarrow, xxhash and fastavro only.

fields, rules: validation of one value · events, json_objects, avro: records in Kafka · sources: files and frames ·
history, packing, hashing: a user's newest events, and their bytes · lake, forgotten: the archive, and deleted users.
"""
