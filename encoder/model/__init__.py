"""The network that turns a history into a vector, and what it is trained by: no file access, no device, no logging.

config -> hashing, vocabulary (ids to rows) -> elementwise, block -> user_encoder -> dcat (candidates, by DCAT's two
passes; dcat_reference is its plain meaning) -> losses
"""
