"""The one door to Feast: guarded online writes, the offline log, reads."""
