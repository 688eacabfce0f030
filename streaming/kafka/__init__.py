"""Faust and aiokafka, the only room that touches their private members: transport (app, consumer, fetches), batches
(records taken from the agent's queue), source (own records, acknowledgement, commit, sending), broker (address,
credentials, check of the topics)."""
