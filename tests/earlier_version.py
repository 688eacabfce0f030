"""What the last version with names of 16 bits (hash version 1) left behind, written by code of its own."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors_numpy

from spoor.activity.history import Values


def old_packed(values: Values) -> bytes:
    """One user's events (names of 64 bits, oldest first) as codec version 1 packed them; events that it could not tell
    apart are one."""
    events = sorted({(int(t), int(item), int(a) >> 48, int(s) >> 48) for t, item, a, s in values.tolist()})
    pairs = sorted({event[2:] for event in events})
    assert len(pairs) <= 256
    body = b"".join(struct.pack("<HH", *pair) for pair in pairs)
    body += b"".join(struct.pack("<Q", time + 2**47)[:6] for time, *_ in events)
    body += b"".join(struct.pack("<Q", item) for _, item, *_ in events)
    body += bytes(pairs.index(event[2:]) for event in events)
    return struct.pack("<3sBHBBIIII", b"SPH", 1, 24, 1, 1, len(events), len(pairs), zlib.crc32(body), 0) + body


def age_release(folder: Path) -> None:
    """Makes a release folder one of hash version 1."""
    path = folder / "vocabulary.safetensors"
    arrays = safetensors_numpy.load(path.read_bytes())
    names = {name: np.unique(arrays[name] >> np.uint64(48)).astype(np.uint16) for name in ("actions", "surfaces")}
    path.write_bytes(safetensors_numpy.save(arrays | names))
    record = json.loads((folder / "release.json").read_text()) | {"hash_version": 1}
    (folder / "release.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    (folder / "names.parquet").unlink(missing_ok=True)
    checks = json.loads((folder / "checksums.json").read_text())
    checks = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in checks if (folder / name).exists()
    }
    (folder / "checksums.json").write_text(json.dumps(checks, indent=2, sort_keys=True) + "\n")
