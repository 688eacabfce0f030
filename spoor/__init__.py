"""The command line, configuration, local services and the demo."""
