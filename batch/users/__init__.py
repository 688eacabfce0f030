"""Jobs over all users.

histories reads their histories from the lake. backfill (plan, steps, sweep) writes histories and embeddings, verify
(steps) compares the store with the lake, export writes vectors to Parquet, drift compares days of the offline log,
listing sorts users into buckets.
"""
