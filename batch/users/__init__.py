"""Jobs over all users.

histories reads them from the lake. backfill (plan, steps, sweep) writes their embeddings, verify (and its steps)
compares stores with the lake, export writes vectors to Parquet, drift compares days, listing sorts users into buckets.
"""
