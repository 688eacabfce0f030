"""Release folders: info reads release.json, folder writes and loads the whole; every other room imports these two.

inference runs a release; tuning gives its network to a ranker; packed_tables and pack hold item tables in few bytes;
alignment compares two releases, align turns one into the other's space; model_card and training_end describe it;
allocator keeps freed memory
"""
