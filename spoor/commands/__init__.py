"""The commands, one file each: they parse options, call one function of a room, and print its result.

invocation.py has the settings of a call, options.py the options that several commands have. Sub-packages group the
commands by room; cli.py registers all of them. Heavy imports stay inside the functions, so that `--help` is quick.
"""
