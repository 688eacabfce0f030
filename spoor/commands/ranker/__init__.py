"""Commands for rankers: finetune, features build, lift."""
