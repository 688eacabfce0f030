"""Commands that run a batch job: archive, backfill, verify, export, forget, merge-users."""
