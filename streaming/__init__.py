"""The Faust worker that keeps histories and embeddings fresh, its dead letters, and their replay."""
