"""Events in Avro, with or without a schema registry.

codec: a record's bytes ↔ an event's values · schemas: how to read a record of any schema · registry: schemas by id,
over HTTP · event.avsc: the schema of records without a registry.
"""
