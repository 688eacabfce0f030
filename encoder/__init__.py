"""The model that turns a history into a vector: pretraining, release folders, inference.

This room connects to no service. It reads events from the lake, writes release folders and encodes histories.
"""
