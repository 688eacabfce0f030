"""The network that turns a history into a vector, and its training losses: no file access, no device, no logging.

config -> hashing, vocabulary (ids to rows) -> events (inputs) -> elementwise, block -> user_encoder -> dcat (scores
candidates in DCAT's two passes; dcat_reference is its slow reference) -> losses
"""
