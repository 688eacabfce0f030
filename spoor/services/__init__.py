"""Servers that Spoor itself starts, from pip and Maven Central alone.

local: the embedded Kafka, up, down and status; kafka_process: its process; kafka_server: its jars, files and
configuration. flink: a Flink for one batch job. java: the runtime, the jars' cache, and the wait for a start.
"""
