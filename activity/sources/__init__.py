"""Events from files, folders and frames: CSV, JSON lines, Parquet, pandas, pyarrow.

event_files: a source → validated events in order · tables: files → rows with their lines · columns: a column of any
type → a column of events · ties: order and times of events with equal times.
"""
