"""The model that turns a history into a vector: pretraining, release folders, inference.

This room holds no connection to a service. It reads events from the lake, writes release folders, and encodes.
"""
