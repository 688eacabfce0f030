"""The state of a worker: metrics (counts), health (alive, ready), lookout (polls broker and store), status_server."""
