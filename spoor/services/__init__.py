"""Servers that Spoor starts itself, from pip and Maven Central only.

local: the embedded Kafka: up, down, status · kafka_process: its process · kafka_server: its jars, files and
configuration · flink: a Flink for one batch job · java: the runtime, the cache of jars, and the wait for a server's
start.
"""
