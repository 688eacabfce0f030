"""Beam jobs over bounded work: archive, backfill, verify. The only room that imports apache_beam."""
