"""Release folders: info reads release.json, folder writes and loads whole releases; the other modules use these two.

inference runs a release; tuning prepares its network for a ranker; packed_tables and pack quantise item tables;
alignment compares two releases, align rotates one into the other's space; model_card and training_end describe it;
allocator keeps freed memory
"""
