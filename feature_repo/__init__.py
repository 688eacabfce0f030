"""Feast definitions: what Spoor keeps in the feature store. Import-light: Feast, JSON and TOML, nothing else."""
