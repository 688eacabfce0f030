"""The one home of Kafka clients (kafka-python): below activity and all rooms that talk to a broker.

settings, embedded_broker: which broker, and whether the one at the embedded port is ours. clients: timeouts and the one
translation of errors; compression: a codec that is not installed. admin, reader, producer: the three clients. reach:
does a broker answer. topics: the rules for Spoor's topics; create_topics: creates and deletes them.
"""
