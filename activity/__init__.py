"""What people do: events, histories, their bytes and their files. numpy, pyarrow and xxhash only."""
