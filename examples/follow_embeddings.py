"""What a streaming consumer does with Spoor's topic: follow every user's newest embedding, with Kafka's client alone.

python examples/follow_embeddings.py BROKER:PORT user-embeddings.RELEASE [SECONDS without a record, then end]
"""

import json
import sys
from typing import Any

import pyarrow as pa
from kafka import KafkaConsumer


def row_of(value: bytes) -> dict[str, Any]:
    if value.startswith(b"\xff\xff\xff\xff"):  # Arrow; no JSON begins so
        return pa.ipc.open_stream(value).read_all().to_pylist()[0]
    return json.loads(value)


broker, topic, seconds = (*sys.argv[1:], "inf")[:3]
options = {"auto_offset_reset": "earliest", "consumer_timeout_ms": float(seconds) * 1000}
newest: dict[str, dict[str, Any]] = {}
for record in KafkaConsumer(topic, bootstrap_servers=broker, **options):
    user = record.key.decode()
    if record.value is None:  # this user has no embedding any more
        newest.pop(user, None)
    elif (row := row_of(record.value))["revision"] > newest.get(user, {"revision": 0})["revision"]:
        newest[user] = row  # a row may come twice, or an older one after it
    print(json.dumps({"user_id": user} | newest.get(user, {})), flush=True)
