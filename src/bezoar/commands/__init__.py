"""Each command is a small dataclass whose fields are its options; one file a command.

Nothing heavy is imported before a command runs, so ``bezoar --help`` answers at once.
"""
