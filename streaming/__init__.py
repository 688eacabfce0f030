"""The stream worker: activity events from Kafka into Feast and the embedding topics.

worker runs it from start to end, app wires the Faust app, settings holds the room's settings. Below them, downwards:
orders, pipeline (the nine steps of a batch), status, kafka, records.
"""
