"""Spoor's definitions in Feast. Their imports are light: Feast, JSON and TOML only."""
