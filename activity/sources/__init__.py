"""Events from files, folders and frames: CSV, JSON lines, Parquet, pandas, pyarrow.

event_files: a source → checked events in order · tables: files → rows with their lines · columns: a column of any type
→ a column of events · ties: the order and times of events that share one time.
"""
