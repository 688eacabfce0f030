"""All Kafka clients (kafka-python): below activity and all rooms that talk to a broker.

settings, embedded_broker: the broker, and whether the one at the embedded port is ours · clients: timeouts and the
translation of errors · compression: missing codecs · admin, reader, producer: the three clients · reach: whether a
broker answers · topics: the rules for Spoor's topics · create_topics: creates and deletes them.
"""
