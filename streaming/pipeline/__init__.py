"""A batch on its way into store and topics: processor (its nine steps), pacer (rate limit of encodes), stores and
encoder_process (what it is written with), publisher, dead_letter_writer, retries, daemon_threads."""
